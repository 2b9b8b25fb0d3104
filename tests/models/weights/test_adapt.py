import dataclasses

import numpy as np
import pytest
from flax import nnx

from jaxtrain.config import ModelConfig
from jaxtrain.errors import UserError
from jaxtrain.models import create_model
from jaxtrain.models.weights import Pretrained, adapt
from jaxtrain.models.weights.adapt import average_channels, resize_positions
from jaxtrain.trees import flat


def shapes(name, size=32, channels=3, classes=5, **options):
    """The network's parameters and statistics as shapes, by name."""
    config = ModelConfig(name=name, **options)
    model = nnx.eval_shape(lambda: create_model(config, num_classes=classes, channels=channels, image_size=size))
    _, params, state = nnx.split(model, nnx.Param, ...)
    return {"params": flat(nnx.to_pure_dict(params)), "model_state": flat(nnx.to_pure_dict(state))}


def pretrained(name, names=None, **options):
    rng = np.random.default_rng(0)
    made = {
        part: {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in leaves.items()}
        for part, leaves in shapes(name, **options).items()
    }
    return Pretrained(
        "a/run", ModelConfig(name=name), made["params"], made["model_state"], 32, 3, (0.5,) * 3, (0.5,) * 3, 1.0,
        "bicubic", names, options.get("classes", 5), "",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["vit_test", "resnet_tiny", "convnext_test", "efficientnet_lite_test", "cnn_tiny"])
def test_the_same_network_takes_everything_as_it_is(name):
    weights, wanted = pretrained(name), shapes(name)
    params, state, adapted = adapt(weights, wanted)
    for tree, shape, have in (
        (params, wanted["params"], weights.params),
        (state, wanted["model_state"], weights.model_state),
    ):
        assert tree.keys() == shape.keys()
        for path, leaf in tree.items():
            np.testing.assert_array_equal(leaf, have[path])
    assert (adapted.head, adapted.notes) == (True, ())


@pytest.mark.parametrize("name", ["vit_test", "resnet_tiny", "convnext_test", "efficientnet_lite_test", "cnn_tiny"])
def test_other_classes_channels_and_sizes(name):
    params, _, adapted = adapt(pretrained(name), shapes(name, size=48, channels=1, classes=7))
    wanted = shapes(name, size=48, channels=1, classes=7)["params"]
    assert {path: leaf.shape for path, leaf in params.items()} == {
        path: leaf.shape for path, leaf in wanted.items() if not path.startswith("head/")
    }
    assert not adapted.head
    assert adapted.why == "the weights' is for 5 classes"
    assert "the first kernel averaged from 3 to 1 channels" in adapted.notes
    assert ("position embeddings resized from 17 to 37 places" in adapted.notes) == (name == "vit_test")


def test_the_head_stays_where_the_classes_are_others_of_the_same_number():
    weights = pretrained("cnn_tiny", names=tuple("abcde"))
    assert adapt(weights, shapes("cnn_tiny"), class_names=list("abcde"))[2].head
    other = adapt(weights, shapes("cnn_tiny"), class_names=list("edcba"))
    assert "head" not in other[0]
    assert (other[2].notes, other[2].why) == ((), "the weights' is for other classes")
    unnamed = dataclasses.replace(weights, class_names=None)
    assumed = adapt(unnamed, shapes("cnn_tiny"), class_names=list("edcba"))[2]
    assert assumed.head
    assert assumed.notes == (
        "the head comes along: its 5 classes have no names and are taken for the data set's, in the same order",
    )
    assert adapt(unnamed, shapes("cnn_tiny"))[2].notes == ()  # no data set to compare with


def test_weights_without_a_head():
    weights = pretrained("vit_test")
    weights = dataclasses.replace(
        weights, params={k: v for k, v in weights.params.items() if not k.startswith("head/")}
    )
    params, _, adapted = adapt(weights, shapes("vit_test"))
    assert not any(name.startswith("head/") for name in params)
    assert (adapted.notes, adapted.why) == ((), "the weights have none")


def test_what_does_not_fit_is_listed_in_one_error():
    with pytest.raises(UserError) as caught:
        adapt(pretrained("vit_test", registers=2), shapes("vit_test", patch_size=4))
    assert str(caught.value) == (
        "model.weights: a/run does not fit this model vit_test; 1 left over: reg_token; 1 of the wrong shape: "
        "patch_embed/kernel is [8, 8, 3, 32], [4, 4, 3, 32] is needed"
    )
    with pytest.raises(UserError, match=r"; \d+ missing: .*, and \d+ more; \d+ left over: .*, and \d+ more$"):
        adapt(pretrained("resnet_tiny"), shapes("cnn_tiny"))


def test_perceptrons_have_no_kernel_to_average():
    with pytest.raises(UserError, match="1 of the wrong shape: blocks/0/linear/kernel"):
        adapt(pretrained("mlp_tiny", size=8), shapes("mlp_tiny", size=8, channels=1))


def test_a_grey_image_gives_what_it_gave_as_rgb():
    rng = np.random.default_rng(0)
    kernel, image = rng.normal(size=(3, 3, 3, 8)).astype(np.float32), rng.normal(size=(3, 3, 1))
    grey = average_channels(kernel, 1)
    assert grey.shape == (3, 3, 1, 8)
    as_rgb = np.einsum("hwc,hwco->o", np.repeat(image, 3, axis=2), kernel)
    np.testing.assert_allclose(np.einsum("hwc,hwco->o", image, grey), as_rgb, atol=1e-5)
    back = average_channels(grey, 3)
    np.testing.assert_allclose(np.einsum("hwc,hwco->o", np.repeat(image, 3, axis=2), back), as_rgb, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(4, 6), (6, 4), (7, 16), (16, 7)])
def test_positions_are_resized_as_torch_does(old, new):
    torch = pytest.importorskip("torch")
    positions = np.random.default_rng(0).normal(size=(1, 1 + old * old, 5)).astype(np.float32)
    grid = torch.from_numpy(positions[:, 1:]).reshape(1, old, old, 5).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    expected = np.concatenate([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, new * new, 5).numpy()], 1)
    np.testing.assert_allclose(resize_positions(positions, 1 + new * new), expected, atol=1e-5)
    without = resize_positions(positions[:, 1:], new * new)
    np.testing.assert_allclose(without, expected[:, 1:], atol=1e-5)


def test_a_grid_of_the_same_size_is_left_alone():
    positions = np.random.default_rng(0).normal(size=(1, 17, 5)).astype(np.float32)
    np.testing.assert_allclose(resize_positions(positions, 17), positions, atol=1e-6)
