"""EfficientNet: the scaling rules and the two ways of padding."""

import pytest
from flax import nnx

from jaxtrain.models import create_model
from jaxtrain.models.mobile_blocks import plan, round_to_8
from jaxtrain.models.variants import VARIANTS


@pytest.mark.parametrize(
    ("channels", "rounded"), [(16, 16), (17.6, 16), (26.4, 24), (33.6, 32), (22.4, 24), (12, 16), (1, 8)]
)
def test_channels_round_to_a_multiple_of_8_and_lose_at_most_a_tenth(channels, rounded):
    assert round_to_8(channels) == rounded


def test_first_and_last_stage_keep_their_depth():
    stages = VARIANTS["efficientnet_lite0"][1]["stages"]
    assert len(plan(stages, 32, 1.0, 1.0, fixed=True)) == 16
    deep = plan(stages, 32, 1.4, 1.8, fixed=True)
    assert len(deep) == 1 + 4 + 4 + 6 + 6 + 8 + 1
    assert (deep[0].kind, deep[0].kernel, deep[0].stride, deep[0].channels) == ("ds", 3, 1, 24)
    assert (deep[-1].kind, deep[-1].expansion, deep[-1].channels) == ("ir", 6, 448)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "tf_efficientnet_lite0"])
def test_both_paddings_round_sides_up(feature_shape, name):
    assert feature_shape(name, 65) == (2, 3, 3, 1280)
    model = nnx.eval_shape(lambda: create_model(name, num_classes=10, image_size=65))
    assert model.stem.bn.epsilon == (1e-3 if name.startswith("tf_") else 1e-5)
