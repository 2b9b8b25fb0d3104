"""Live timm and transformers, as they are installed, with weights drawn from their names.

The small networks of `cases.py` always, whole ones in the slow run: those also say in their config.json which model
they are and how images are prepared, and that must suffice.
"""

import json

import numpy as np
import pytest

from jaxtrain.models import model_spec
from jaxtrain.models.weights import export_timm, load_pretrained
from tests.models.weights import torchvision_stub
from tests.models.weights.cases import CASES, draw, golden, golden_blocks, images, samples
from tests.models.weights.make_golden import outputs, reference, saved_shapes
from tests.models.weights.networks import register, run

torch = pytest.importorskip("torch")
torchvision_stub.install()
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("name", CASES)
def test_golden_files_are_what_the_installed_libraries_compute(name):
    shapes, expected = golden(name)
    now_shapes, now, taps = reference(CASES[name])
    assert {key: tuple(shape) for key, shape in now_shapes.items()} == shapes
    np.testing.assert_allclose(now, expected, atol=1e-5)
    if name.startswith("timm"):
        np.testing.assert_allclose(list(map(samples, taps)), golden_blocks(name), atol=1e-5)


def timm_folder(name, folder, **options):
    """A whole timm model with drawn weights, and the folder that timm's own code publishes it as."""
    from timm.models import save_for_hf

    model = timm.create_model(name, pretrained=False, **options).eval()
    arrays = {key: draw(key, tuple(array.shape)) for key, array in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    save_for_hf(model, folder, safe_serialization=True)
    return model


def close(ours, theirs):
    assert 1e-2 < np.abs(theirs).max() < 1e3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


SIZES = {"vit_small_patch14_reg4_dinov2": 140, "vit_small_patch14_dinov2": 140}
"""Smaller images than the model's own, to save time."""
TIMM = [
    "vit_tiny_patch16_224",
    "resnet18",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "efficientnet_lite0",
    "vit_small_patch16_224",
    "vit_small_patch16_384",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "deit3_small_patch16_224",
    "resnet50",
    "convnext_tiny",
    "tf_efficientnet_lite1",
    "vit_xsmall_patch16_clip_224",
    "vit_tiny_patch16_dinov3_qkvb",
    "eva02_tiny_patch14_224",
    "convnextv2_atto",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "regnety_002",
    "resnet10t",
    "swin_tiny_patch4_window7_224",
    "vit_base_patch16_siglip_224",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_whole_models_of_timm(name, tmp_path):
    options = {"img_size": SIZES[name]} if name in SIZES else {}
    model = timm_folder(name, tmp_path, **options)
    pretrained = load_pretrained(str(tmp_path))
    spec, config = model_spec(name), model.pretrained_cfg
    assert (pretrained.model.name, pretrained.num_classes) == (name, model.num_classes)
    assert pretrained.image_size == SIZES.get(name, spec.image_size)
    for field in ("mean", "std", "crop_pct", "interpolation"):
        assert getattr(pretrained, field) == config[field], field
        assert getattr(pretrained, field) == getattr(spec, field), field
    pixels = images(pretrained.image_size)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    close(run(pretrained, pixels), expected)

    from safetensors.torch import load_file

    back = timm.create_model(name, pretrained=False, **options)
    back.load_state_dict(load_file(export_timm(pretrained, tmp_path / "back.safetensors")))
    for key, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key


VIT = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
TRANSFORMERS = {
    "deit_small_patch16_224": ("DeiTForImageClassification", {**VIT, "hidden_size": 384}),
    "vit_small_patch16_224": ("ViTForImageClassification", VIT),
    "vit_small_patch14_dinov2": ("Dinov2Model", {**VIT, "image_size": 140, "patch_size": 14}),
    "vit_small_patch14_reg4_dinov2": ("Dinov2WithRegistersModel", {**VIT, "image_size": 140, "patch_size": 14}),
    "resnet18": (
        "ResNetForImageClassification",
        {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    ),
    "resnet50": ("ResNetForImageClassification", {}),
    "convnext_tiny": ("ConvNextForImageClassification", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_whole_models_of_transformers(name, tmp_path):
    from safetensors.numpy import save_file

    cls, options = TRANSFORMERS[name]
    model_class = getattr(transformers, cls)
    model = model_class(model_class.config_class(**options, id2label={0: "cat", 1: "dog"}))
    shapes = saved_shapes(model)
    model.save_pretrained(tmp_path)
    save_file(
        {key: draw(key, shape) for key, shape in shapes.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"shortest_edge": 256},
                 "crop_size": {"height": 140, "width": 140}, "do_center_crop": True, "resample": 3}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    model = model_class.from_pretrained(tmp_path).eval()
    pretrained = load_pretrained(str(tmp_path))
    assert pretrained.model.name == name
    assert (pretrained.image_size, pretrained.crop_pct, pretrained.interpolation) == (140, 140 / 256, "bicubic")
    assert (pretrained.mean, pretrained.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert pretrained.class_names == (("cat", "dog") if "Classification" in cls else None)
    size = options.get("image_size", 224)

    close(run(pretrained, images(size)), outputs(size, model))


TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
         "image_size": 32, "patch_size": 8}  # fmt: skip
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 9}
TOWERS = {
    "clip": ("CLIPModel", {"text_config": TEXT, "vision_config": TOWER, "projection_dim": 7}, "transformers_clip"),
    "siglip": (
        "SiglipModel",
        {"text_config": TEXT, "vision_config": {**TOWER, "intermediate_size": 40}},
        "transformers_siglip",
    ),
    "siglip_classes": (
        "SiglipForImageClassification",
        {"vision_config": {**TOWER, "intermediate_size": 40}, "num_labels": 5},
        "timm_vit_siglip_gap",
    ),
    "dinov3": (
        "DINOv3ViTModel",
        {**TOWER, "intermediate_size": 48, "num_register_tokens": 4},
        "transformers_dinov3",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_image_towers_of_transformers_in_folders(name, tmp_path, monkeypatch):
    """Within models that have a text tower as well, and a config.json that says which activation they have."""
    from safetensors.numpy import save_file

    cls, options, case = TOWERS[name]
    register(monkeypatch, case, CASES[case])
    model_class = getattr(transformers, cls)
    model = model_class(model_class.config_class(**options))
    shapes = saved_shapes(model)
    model.save_pretrained(tmp_path)
    arrays = {key: np.asarray(draw(key, shape)) for key, shape in shapes.items()}
    save_file(arrays, tmp_path / "model.safetensors", {"format": "pt"})
    model = model_class.from_pretrained(tmp_path).eval()
    pixels = torch.from_numpy(images(32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        if hasattr(model, "get_image_features"):
            found = model.get_image_features(pixels)
            found = found if isinstance(found, torch.Tensor) else found.pooler_output
        else:
            found = model(pixels)
            found = found.logits if "Classification" in cls else found.pooler_output
    pretrained = load_pretrained(str(tmp_path))
    assert pretrained.model.name == case
    close(run(pretrained, images(32)), found.numpy())
