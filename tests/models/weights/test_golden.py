"""Logits of other software's networks, computed once by `make_golden.py`; no torch here."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxtrain.config import ModelConfig
from jaxtrain.errors import RunError, UserError
from jaxtrain.models.weights import Pretrained, export_timm, load_pretrained
from jaxtrain.models.weights.convert import shapes_of
from jaxtrain.trees import tree_digest
from tests.marks import mostly_slow
from tests.models.weights.cases import CASES, GOLDEN, draw, golden, golden_blocks, images, samples
from tests.models.weights.networks import register, run

TIMM = [name for name in CASES if name.startswith("timm")]
FAST = {"timm_vit", "timm_resnet_bottleneck", "timm_convnext"}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Drawn weights of a case, perhaps changed, from a file."""

    def load(name, change=lambda arrays: arrays):
        case = CASES[name]
        register(monkeypatch, name, case)
        arrays = change({key: draw(key, shape) for key, shape in golden(name)[0].items()})
        path = tmp_path / f"w.{case.file}"
        np.savez(path, **arrays) if case.file == "npz" else save_file(arrays, path)
        return load_pretrained(str(path), ModelConfig(name=name))

    return load


@pytest.mark.parametrize("name", mostly_slow(CASES, FAST))
def test_outputs_are_the_references(name, load):
    case, expected = CASES[name], golden(name)[1]
    pretrained = load(name)
    assert (pretrained.num_classes, pretrained.image_size, pretrained.channels) == (case.classes, case.size, 3)
    assert np.abs(expected).mean() > 0.1
    taps = []
    np.testing.assert_allclose(run(pretrained, images(case.size), taps), expected, atol=2e-5, rtol=0)
    if name.startswith("timm"):
        np.testing.assert_allclose(list(map(samples, taps)), golden_blocks(name), atol=1e-4, rtol=0)


def test_every_golden_file_belongs_to_a_case():
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", mostly_slow(TIMM, FAST))
def test_export_gives_the_same_file_back(name, load, tmp_path):
    from safetensors.numpy import load_file

    written = {}
    pretrained = load(name, lambda arrays: written.update(arrays) or arrays)
    path = export_timm(pretrained, tmp_path / "exported.safetensors")
    exported = load_file(path)
    for key, array in written.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(exported.pop(key), array)
    assert not exported
    again = load_pretrained(str(path))
    assert again.digest == pretrained.digest
    assert (again.model.name, again.model.pool) == (name, pretrained.model.pool)
    assert (again.mean, again.image_size, again.num_classes) == (pretrained.mean, pretrained.image_size, 7)


def network(name, size, channels):
    """A network of the registry as weights, drawn from the names."""
    found = shapes_of(ModelConfig(name=name), size, channels, 5)
    params, state = (
        {path: draw(path, shape) for path, shape in found[part].items()} for part in ("params", "model_state")
    )
    values = (0.5,) * channels
    return Pretrained(
        "w", ModelConfig(name=name), params, state, size, channels, values, values, 1.0, "bilinear", None, 5,
        tree_digest({"params": params, "model_state": state}),
    )  # fmt: skip


@pytest.mark.slow
def test_export_of_a_network_that_the_registry_has_with_average_pooling(tmp_path):
    from safetensors.numpy import load_file

    pretrained = network("vit_tiny_patch4_32", 32, 3)
    path = export_timm(pretrained, tmp_path / "exported.safetensors")
    last = {name for name in load_file(path) if "norm" in name and not name.startswith("blocks.")}
    assert last == {"fc_norm.weight", "fc_norm.bias"}
    assert load_pretrained(str(path)).digest == pretrained.digest


def test_export_where_it_cannot_be(tmp_path):
    with pytest.raises(RunError, match=r"^\S+missing/a\.safetensors could not be written: .*No such file[^\n]*$"):
        export_timm(network("vit_test", 32, 3), tmp_path / "missing" / "a.safetensors")
    with pytest.raises(UserError, match=r"^w: timm has no cnn_tiny; it has those of (?!.*cnn).*convnext_\w+, \.\.\.$"):
        export_timm(network("cnn_tiny", 32, 3), tmp_path / "a.safetensors")


@pytest.mark.parametrize("config", [None, {}, {"license": "mit"}])
def test_an_export_says_what_it_is_also_in_a_folder(config, load, tmp_path):
    pretrained = dataclasses.replace(load("timm_vit"), mean=(0.1, 0.2, 0.3), class_names=tuple("abcdefg"))
    (tmp_path / "folder").mkdir()
    export_timm(pretrained, tmp_path / "folder" / "model.safetensors")
    if config is not None:
        (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    again = load_pretrained(str(tmp_path / "folder"))
    assert (again.model.name, again.mean, again.class_names) == ("timm_vit", pretrained.mean, pretrained.class_names)


@pytest.mark.parametrize("name", ["timm_vit", "transformers_resnet_basic", "google_vit"])
def test_what_is_missing_left_over_or_misshapen_is_listed_in_one_line(name, load):
    names = sorted(golden(name)[0])
    gone = names[0]
    bent = next(key for key in names[1:] if "norm" in key.lower() and key.endswith("bias"))

    def change(arrays):
        return {key: array for key, array in arrays.items() if key != gone} | {
            "surplus": np.zeros(3, np.float32),
            bent: np.zeros((3, 5), np.float32),
        }

    with pytest.raises(UserError) as caught:
        load(name, change)
    message = str(caught.value)
    assert "\n" not in message
    prefix = "resnet." if name.startswith("transformers") else ""
    assert f"1 missing: {gone.removeprefix(prefix)}; 1 left over: surplus; 1 of the wrong shape: " in message
    assert f"{bent.removeprefix(prefix)} makes [" in message


@pytest.mark.parametrize("name", mostly_slow(CASES, FAST))
def test_arrays_of_any_shape_are_an_error_in_one_line(name, load):
    rng = np.random.default_rng(0)
    for _ in range(3):
        with pytest.raises(UserError, match=r"^model\.weights: [^\n]* of the wrong shape: [^\n]*$|^image size [^\n]*$"):
            load(name, lambda arrays: {key: np.zeros(rng.integers(0, 4, rng.integers(0, 5))) for key in arrays})


def test_a_projection_without_bias_is_a_head_and_the_text_tower_stays_behind(load):
    text = {"text_model.final_layer_norm.weight": np.ones(3, np.float32), "logit_scale": np.ones((), np.float32)}
    pretrained = load("transformers_clip", lambda arrays: arrays | text)
    assert not pretrained.params["head/bias"].any()
    assert pretrained.digest == load("transformers_clip").digest


def test_an_activation_that_is_not_the_variants(load, tmp_path, monkeypatch):
    pretrained = load("transformers_siglip")
    case = CASES["transformers_siglip"]
    register(monkeypatch, "exact", dataclasses.replace(case, kwargs={**case.kwargs, "act": "gelu"}))
    file, expected = str(tmp_path / "w.safetensors"), golden("transformers_siglip")[1]
    exact, by_tanh = (
        load_pretrained(file, ModelConfig(name="exact", **options)) for options in ({}, {"act": "gelu_tanh"})
    )
    assert exact.digest == by_tanh.digest == pretrained.digest
    np.testing.assert_allclose(run(by_tanh, images(32)), expected, atol=2e-5)
    assert np.abs(run(exact, images(32)) - expected).max() > 1e-4


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_what_stands_before_every_name_is_taken_off(prefix, load):
    plain = load("timm_convnext")
    wrapped = load("timm_convnext", lambda arrays: {f"{prefix}{key}": array for key, array in arrays.items()})
    assert wrapped.digest == plain.digest


@pytest.mark.parametrize("name", ["transformers_vit", "transformers_resnet_basic", "transformers_convnext"])
def test_a_backbone_alone_has_no_head(name, load):
    def backbone(arrays):
        rest = {key: array for key, array in arrays.items() if not key.startswith("classifier")}
        return {key.partition(".")[2]: array for key, array in rest.items()}

    pretrained = load(name, backbone)
    assert pretrained.num_classes == 0
    assert not any(name.startswith("head/") for name in pretrained.params)
    full = load(name).params
    for path, array in pretrained.params.items():
        np.testing.assert_array_equal(array, full[path])


def test_half_precision_becomes_single(load):
    import ml_dtypes

    half = load("timm_vit", lambda arrays: {key: array.astype(ml_dtypes.bfloat16) for key, array in arrays.items()})
    assert {leaf.dtype for _, leaf in half.params.items()} == {np.dtype(np.float32)}
    expected = golden("timm_vit")[1]
    np.testing.assert_allclose(run(half, images(32)), expected, atol=0.1)


def test_a_distilled_pupils_two_heads_stay_behind(load):
    def teacher(arrays):
        heads = {f"{kind}_classifier.{leaf}": arrays[f"classifier.{leaf}"]
                 for kind in ("cls", "distillation") for leaf in ("weight", "bias")}  # fmt: skip
        return {key: array for key, array in arrays.items() if not key.startswith("classifier")} | heads

    assert load("transformers_deit", teacher).num_classes == 0
    assert load("transformers_deit").model.registers == 1


def test_authors_names(load):
    """Files of DINOv2's, DeiT III's and ConvNeXt's authors name a few things otherwise than timm."""
    renamed = {"reg_token": "register_tokens"}
    with_class = load("timm_dinov2_reg").params

    def meta_dino(arrays):
        positions = np.concatenate([np.full((1, 1, 32), 0.25, np.float32), arrays["pos_embed"]], axis=1)
        arrays = {renamed.get(key, key): array for key, array in arrays.items()} | {"pos_embed": positions}
        return arrays | {"mask_token": np.zeros((1, 32), np.float32)}

    dino = load("timm_dinov2_reg", meta_dino).params
    np.testing.assert_allclose(dino["cls_token"], with_class["cls_token"] + 0.25, atol=1e-6)
    np.testing.assert_array_equal(dino["pos_embed"], with_class["pos_embed"])
    np.testing.assert_array_equal(dino["reg_token"], with_class["reg_token"])
    deit = load("timm_deit3")
    for_meta = {f"ls{n}.gamma": f"gamma_{n}" for n in (1, 2)}

    def meta_deit(arrays):
        return {key.replace(key[9:], for_meta.get(key[9:], key[9:])): array for key, array in arrays.items()}

    assert load("timm_deit3", meta_deit).digest == deit.digest

    def facebook(arrays):
        for old, new in (("stem.", "downsample_layers.0."), (".blocks.", "."), (".conv_dw.", ".dwconv."),
                         ("mlp.fc", "pwconv"), ("head.norm", "norm"), ("head.fc", "head")):  # fmt: skip
            arrays = {key.replace(old, new): array for key, array in arrays.items()}
        for i in (1, 2, 3):
            arrays = {key.replace(f"stages.{i}.downsample", f"downsample_layers.{i}"): a for key, a in arrays.items()}
        return arrays

    assert load("timm_convnext", facebook).digest == load("timm_convnext").digest
