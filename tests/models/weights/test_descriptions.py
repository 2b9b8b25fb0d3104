import pytest

from jaxtrain.errors import UserError
from jaxtrain.models import list_models, model_spec
from jaxtrain.models.weights.descriptions import Description, describe, describe_name

A1 = {
    "architecture": "resnet50",
    "num_classes": 1000,
    "num_features": 2048,
    "pretrained_cfg": {
        "tag": "a1_in1k", "input_size": [3, 224, 224], "test_input_size": [3, 288, 288], "crop_pct": 0.95,
        "test_crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        "first_conv": "conv1", "classifier": "fc",
    },
}  # fmt: skip
"""timm/resnet50.a1_in1k's, shortened."""


def test_timm():
    found = describe(A1, {}, "hf:timm/resnet50.a1_in1k")
    spec = model_spec("resnet50")
    assert found == Description(
        model="resnet50", image_size=224, mean=spec.mean, std=spec.std, crop_pct=0.95, interpolation="bicubic"
    )
    wrapped = describe({"model_type": "timm_wrapper", **A1, "label_names": ["a", "b"]}, {}, "x")
    assert wrapped.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": "resnet50_gn"},
            r"^x holds timm's resnet50_gn, which jaxtrain has not; did you mean 'resnet50",
        ),
        ({"model_args": {"act_layer": "silu", "img_size": 32}}, "^x holds resnet50 built with act_layer, which"),
        ({"pretrained_cfg": {"input_size": 3}}, r"^x: is not a sound config\.json"),
        ({"pretrained_cfg": {"mean": ["a"]}}, r"^x: is not a sound config\.json"),
        ({"architecture": ["x"]}, r"^x: is not a sound config\.json"),
    ],
)
def test_what_timm_says_of_other_networks_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        describe({**A1, **change}, {}, "x")


VIT = {"model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16,
       "image_size": 224, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True}  # fmt: skip
SMALL = {"hidden_size": 384, "num_attention_heads": 6}
RESNET = {"model_type": "resnet", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "hidden_act": "relu",
          "layer_type": "bottleneck", "downsample_in_bottleneck": False}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (VIT, "vit_base_patch16_224"),
        ({**VIT, "image_size": 384}, "vit_base_patch16_384"),
        ({**VIT, "patch_size": 32}, "vit_base_patch32_224"),
        ({**VIT, "hidden_size": 192, "num_attention_heads": 3}, "vit_tiny_patch16_224"),
        ({**VIT, **SMALL, "model_type": "deit"}, "deit_small_patch16_224"),
        ({**VIT, "model_type": "dinov2", "patch_size": 14, "image_size": 518}, "vit_base_patch14_dinov2"),
        (
            {**VIT, **SMALL, "model_type": "dinov2_with_registers", "patch_size": 14, "image_size": 518},
            "vit_small_patch14_reg4_dinov2",
        ),
        (RESNET, "resnet50"),
        ({**RESNET, "depths": [3, 4, 23, 3]}, "resnet101"),
        (
            {**RESNET, "depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
            "resnet34",
        ),
        ({"model_type": "convnext", "depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]}, "convnext_tiny"),
        ({"model_type": "convnext", "depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]}, "convnext_base"),
    ],
)
def test_transformers(config, model):
    assert describe(config, {}, "x").model == model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hidden_size": 100},
            "^x holds a vit of a size that jaxtrain has not: width 100, depth 12, heads 12, patch_size",
        ),
        ({"hidden_act": "quick_gelu"}, "^x: hidden_act=quick_gelu is not what jaxtrain's vit has"),
        ({"model_type": "swin"}, r"^x holds a model of type swin, which jaxtrain has not; valid: .*deit, "),
        ({"hidden_size": None}, "^x holds a vit of a size"),
        ({"id2label": {"a": "b"}}, r"^x: is not a sound config\.json"),
    ],
)
def test_what_transformers_says_of_other_networks_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        describe({**VIT, **change}, {}, "x")


LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
DINO3 = {"model_type": "dinov3_vit", "num_register_tokens": 4}
SILU = {"use_gated_mlp": True, "hidden_act": "silu"}


@pytest.mark.parametrize(
    ("config", "model", "act"),
    [
        ({"model_type": "clip", "vision_config": {}}, "vit_base_patch32_clip_quickgelu_224", None),
        (
            {"model_type": "clip", "vision_config": {"patch_size": 16, "hidden_act": "gelu"}},
            "vit_base_patch16_clip_224",
            None,
        ),
        (
            {"model_type": "clip_vision_model", **LARGE, "patch_size": 14, "image_size": 336},
            "vit_large_patch14_clip_quickgelu_336",
            None,
        ),
        (
            {"model_type": "siglip", "vision_config": {"image_size": 256}},
            "vit_base_patch16_siglip_256",
            "gelu_tanh",
        ),
        ({"model_type": "siglip_vision_model", **LARGE, "image_size": 512}, "vit_large_patch16_siglip_512", None),
        (
            {"model_type": "siglip", "architectures": ["SiglipForImageClassification"], "vision_config": {}},
            "vit_base_patch16_siglip_gap_224",
            "gelu_tanh",
        ),
        (DINO3, "vit_small_patch16_dinov3_qkvb", None),
        ({**DINO3, **SILU}, "vit_small_plus_patch16_dinov3_qkvb", None),
        ({**DINO3, **LARGE, "query_bias": False}, "vit_large_patch16_dinov3", None),
    ],
)
def test_image_towers_of_transformers(config, model, act):
    about = describe(config, {}, "x")
    assert (about.model, about.options.get("act")) == (model, act)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "clip", "vision_config": {"hidden_act": "relu"}}, "act relu"),
        ({"model_type": "clip", "vision_config": {"layer_norm_eps": 1e-3}}, "layer_norm_eps=0.001"),
        ({"model_type": "siglip", "vision_config": {"vision_use_head": False}}, "vision_use_head=False"),
        ({**DINO3, "rope_theta": 10.0}, "rope_theta=10.0"),
        ({**DINO3, "use_gated_mlp": True}, "act gelu"),
        ({"model_type": "siglip", "vision_config": 3}, r"config\.json"),
        ({"model_type": "siglip2", "vision_config": {}}, "type siglip2"),
    ],
)
def test_other_image_towers_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        describe(config, {}, "x")


def test_a_stride_in_the_1x1_convolution_is_refused():
    """The same shapes, and another network."""
    with pytest.raises(UserError, match="downsample_in_bottleneck=True is not what"):
        describe({**RESNET, "downsample_in_bottleneck": True}, {}, "x")


@pytest.mark.parametrize(
    ("processor", "size", "crop_pct", "interpolation"),
    [
        ({"size": 224, "resample": 2}, 224, 1.0, "bilinear"),  # google/vit-base-patch16-224
        ({"size": {"height": 384, "width": 384}, "resample": 2, "do_resize": True}, 384, 1.0, "bilinear"),
        (
            {"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3},  # facebook/deit-tiny-patch16-224
            224,
            0.875,
            "bicubic",
        ),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
            224,
            0.875,
            None,
        ),
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
            224,
            0.875,
            "bicubic",
        ),  # microsoft/resnet-50
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, 384, 1.0, None),  # ConvNeXt at 384: no crop
        ({}, None, None, None),
    ],
)
def test_image_processors(processor, size, crop_pct, interpolation):
    found = describe(VIT, processor, "x")
    assert (found.image_size, found.crop_pct, found.interpolation) == (size, crop_pct, interpolation)


def test_class_names_of_transformers():
    labels = {str(i): name for i, name in enumerate(["b", "a", "c"])}
    assert describe({**VIT, "id2label": labels}, {}, "x").class_names == ("b", "a", "c")
    eleven = {str(i): f"n{i}" for i in range(11)}
    assert describe({**VIT, "id2label": dict(sorted(eleven.items()))}, {}, "x").class_names == tuple(eleven.values())
    assert describe({**VIT, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, {}, "x").class_names is None


def test_a_description_survives_json():
    full = Description("vit_test", {"pool": "avg"}, 32, 3, (0.5,), (0.25,), 0.9, "bicubic", ("a", "b"))
    assert Description.from_json(full.to_json()) == full


@pytest.mark.parametrize(
    ("stem", "model"),
    [
        ("vit_small_patch16_224", "vit_small_patch16_224"),
        ("vit_small_patch16_224.augreg_in21k_ft_in1k", "vit_small_patch16_224"),
        ("Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224",
         "vit_tiny_patch16_224"),
        ("S_32-i1k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0--imagenet2012-res_384", "vit_small_patch32_384"),
        ("B_8-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0", "vit_base_patch8_224"),
        ("ViT-B_16", "vit_base_patch16_224"),
        ("imagenet21k+imagenet2012_ViT-L_32", "vit_large_patch32_224"),
        ("R26_S_32-i21k-300ep", None),
        ("R+Ti_16-i1k", None),
        ("my_model", None),
        ("H_14", None),
        ("B_99", None),
    ],
)  # fmt: skip
def test_names_of_files(stem, model):
    assert describe_name(stem).model == model
    assert model is None or model in list_models()
