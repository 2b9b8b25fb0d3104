"""What the catalogue says beside parameters: FLOPs and published accuracies."""

import pytest

from jaxtrain.models import list_models, model_spec
from jaxtrain.models.registry import catalogue, sources, top1
from tests.models.make_catalogue import flops


@pytest.mark.parametrize("name", ["cnn_small", "resnet_tiny", "vit_test", "convnext_test", "efficientnet_lite_test"])
def test_flops_are_those_that_the_script_counts(name):
    assert int(catalogue()[name]["flops"]) == flops(name, model_spec(name).image_size)


def test_flops_by_hand():
    tokens, width = 197, 768
    block = width * (12 * width + 2 * tokens)  # multiply-adds for each token: four projections, two MLPs; attention
    vit = 196 * 16 * 16 * 3 * width + 12 * tokens * block + 1000 * width
    assert int(catalogue()["vit_base_patch16_224"]["flops"]) == 2 * vit
    assert int(catalogue()["linear"]["flops"]) == 2 * model_spec("linear").image_size ** 2 * 3 * 1000


def test_every_model_has_flops_and_accuracies_only_of_its_sources():
    for name in list_models():
        assert int(catalogue()[name]["flops"]) > 0
        assert top1(name).keys() <= sources(name).keys()
        for said in top1(name).values():
            percent, size = said.split("@")
            assert 40 < float(percent) < 95
            assert 96 <= int(size) <= 800
    assert top1("resnet50")["hf:timm/resnet50.a1_in1k"] == "81.240@288"
