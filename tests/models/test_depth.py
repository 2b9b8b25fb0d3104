"""Layers of every family, against the order in which the networks apply their parts."""

import jax
import pytest
from flax import nnx

from jaxtrain.models import create_model
from jaxtrain.models.depth import Depth


def names_of(name, size=32):
    model = nnx.eval_shape(lambda: create_model(name, num_classes=3, image_size=size))
    paths, _ = zip(*jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))[0], strict=True)
    return ["/".join(str(entry.key) for entry in path) for path in paths]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("cnn_tiny", {"blocks/0/conv": 1, "blocks/1/bn": 2, "head": 3}),
        ("vit_test", {"patch_embed": 0, "pos_embed": 0, "cls_token": 0, "blocks/1/attn": 2, "norm": 3, "head": 3}),
        ("convnext_test", {"stem": 0, "stem_norm": 0, "stages/0/0": 1, "downsamples/0": 2, "stages/1/0": 2, "norm": 3}),
        ("efficientnet_lite_test", {"stem": 0, "blocks/0": 1, "blocks/6": 7, "last": 8, "head": 8}),
        ("resnet_tiny", {"conv1": 0, "bn1": 0, "blocks/1/shortcut": 2, "head": 3}),
        ("wide_resnet_tiny", {"conv1": 0, "blocks/2": 3, "norm": 4, "head": 4}),
    ],
)
def test_layers_are_counted_from_the_stem_to_the_head(name, layers):
    everything = names_of(name)
    depth = Depth.of(everything)
    assert depth.top == max(depth.layer(name) for name in everything)
    assert {depth.layer(name) for name in everything} >= set(range(1, depth.top + 1))
    for place, layer in layers.items():
        found = [name for name in everything if f"{name}/".startswith(f"{place}/")]
        assert found, place
        assert {depth.layer(name) for name in found} == {layer}, place


def test_stages_with_several_blocks_follow_each_other():
    blocks = [f"stages/{place}/norm" for place in ("0/0", "0/1", "1/0", "1/1", "1/2")]
    depth = Depth.of([*blocks, "downsamples/0/conv", "head/kernel"])
    assert depth.top == 6
    assert [depth.layer(name) for name in blocks] == [1, 2, 3, 4, 5]
    assert depth.layer("downsamples/0/conv") == 3
