"""Files and folders on this machine; runs and packages are in test_pretrained.py, the hub in test_hub.py."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxtrain.config import ModelConfig
from jaxtrain.errors import UserError
from jaxtrain.models import model_spec
from jaxtrain.models.weights import load_pretrained
from jaxtrain.trees import nested
from tests.models.weights.cases import CASES, draw, golden
from tests.models.weights.networks import register

NAME = "timm_convnext"


@pytest.fixture
def arrays(monkeypatch):
    register(monkeypatch, NAME, CASES[NAME])
    return {key: draw(key, shape) for key, shape in golden(NAME)[0].items()}


def test_one_network_has_one_digest_wherever_it_is_from(arrays, tmp_path, monkeypatch):
    model = ModelConfig(name=NAME)
    save_file(arrays, tmp_path / "a.safetensors")
    reference = load_pretrained(str(tmp_path / "a.safetensors"), model)
    save_file(arrays, tmp_path / f"{NAME}.recipe.safetensors")
    assert load_pretrained(str(tmp_path / f"{NAME}.recipe.safetensors")).digest == reference.digest
    np.savez(tmp_path / "a.npz", **arrays)
    assert load_pretrained(str(tmp_path / "a.npz"), model).digest == reference.digest

    import orbax.checkpoint as ocp

    params = nested(reference.params)
    trees = {"whole": {"params": params, "model_state": {}}, "params": params}
    for folder, tree in trees.items():
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / folder, tree)
        found = load_pretrained(str(tmp_path / folder), model)
        assert (found.digest, found.num_classes, found.channels) == (reference.digest, 7, 3)

    torch = pytest.importorskip("torch")
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    wrappers = {"plain.pth": tensors, "b.pt": {"state_dict": tensors, "epoch": 3, "optimizer": {"lr": 0.1}},
                "c.bin": {"model": {}, "model_ema": {f"module.{k}": v for k, v in tensors.items()}}}  # fmt: skip
    for file, tree in wrappers.items():
        torch.save(tree, tmp_path / file)
        assert load_pretrained(str(tmp_path / file), model).digest == reference.digest


def test_a_published_folder_says_what_it_is(arrays, tmp_path, monkeypatch):
    register(monkeypatch, NAME, dataclasses.replace(CASES[NAME], timm_name="convnext_x"))
    config = {"architecture": "convnext_x", "label_names": list("abcdefg"),
              "pretrained_cfg": {"input_size": [3, 96, 96], "crop_pct": 0.8, "interpolation": "bilinear"}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(arrays, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = load_pretrained(str(path))
        assert (found.model.name, found.image_size, found.crop_pct) == (NAME, 96, 0.8)
        assert (found.interpolation, found.class_names) == ("bilinear", tuple("abcdefg"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: is not a sound config\.json"):
        load_pretrained(str(tmp_path))


def test_a_file_that_does_not_say_its_model(arrays, tmp_path):
    save_file(arrays, tmp_path / "weights.safetensors")
    with pytest.raises(
        UserError, match=r"^model\.name: .*weights\.safetensors does not say for which model it is; give"
    ):
        load_pretrained(str(tmp_path / "weights.safetensors"))
    with pytest.raises(UserError, match=r"^no model 'convnext_tinny'; did you mean"):
        load_pretrained(str(tmp_path / "weights.safetensors"), ModelConfig(name="convnext_tinny"))
    with pytest.raises(UserError, match=r"only weights that jaxtrain saved fit model cnn_small"):
        load_pretrained(str(tmp_path / "weights.safetensors"), ModelConfig(name="cnn_small"))
    with pytest.raises(UserError, match=r"does not fit model convnext_atto; \d+ missing: .* and \d+ more; "):
        load_pretrained(str(tmp_path / "weights.safetensors"), ModelConfig(name="convnext_atto"))


def test_weights_for_grey_images_that_do_not_say_how_these_were_prepared(arrays, tmp_path):
    grey = {name: array[:, :1].copy() if name == "stem.0.weight" else array for name, array in arrays.items()}
    save_file(grey, tmp_path / "weights.safetensors")
    found, spec = load_pretrained(str(tmp_path / "weights.safetensors"), ModelConfig(name=NAME)), model_spec(NAME)
    assert found.channels == 1
    np.testing.assert_allclose((found.mean, found.std), ([np.mean(spec.mean)], [np.mean(spec.std)]))


def test_bfloat16_is_read_also_before_jax_is_there(arrays, tmp_path):
    import ml_dtypes

    path = tmp_path / "a.safetensors"
    save_file({name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}, path)
    code = f"from jaxtrain.models.weights import sources\nprint(len(sources.find({str(path)!r}).arrays))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"{len(arrays)}\n", done.stderr


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
@pytest.mark.parametrize("content", [b"", b"nonsense" * 50, b"PK\x03\x04" + bytes(100)])
def test_a_damaged_file_is_one_line(tmp_path, suffix, content):
    path = tmp_path / f"vit_test{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^[^\n]*vit_test\{suffix}: is not a sound [^\n]*$"):
        load_pretrained(str(path))


def test_pickled_arrays_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "vit_test.npz", a=np.array([{}], object))
    with pytest.raises(UserError, match="is not a sound npz file"):
        load_pretrained(str(tmp_path / "vit_test.npz"))


def test_one_array_in_the_place_of_an_npz(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "vit_test.npz")
    with pytest.raises(
        UserError, match=r"vit_test\.npz: is not a sound npz file.*one array without a name, as a \.npy file does"
    ):
        load_pretrained(str(tmp_path / "vit_test.npz"))


@pytest.mark.parametrize(
    ("array", "dtype"), [(np.zeros(2, "V2"), r"\|V2"), (np.array(["x"]), "<U1"), (np.zeros(2, complex), "complex128")]
)
def test_arrays_that_are_no_numbers(tmp_path, array, dtype):
    np.savez(tmp_path / "vit_test.npz", good=np.zeros(2), bad=array)
    with pytest.raises(UserError, match=f"no array of real numbers under bad, but one of {dtype}$"):
        load_pretrained(str(tmp_path / "vit_test.npz"))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"params": [np.zeros(2)]}, "params is not a dict of arrays, but a list$"),
        ({"params": np.zeros(2)}, "params is not a dict of arrays, but a ndarray$"),
        (
            {"params": {"a": np.zeros(2)}, "model_state": np.zeros(2)},
            "model_state is not a dict of arrays, but a ndarray$",
        ),
        ({"params": {"head": {"kernel": "x"}}}, "no array of real numbers under params/head/kernel, but a str$"),
        ({"params": {"head": {"kernel": None}}}, "no array of real numbers under params/head/kernel, but a NoneType$"),
    ],
)
def test_an_orbax_tree_that_is_no_network(tmp_path, tree, message):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", tree)
    with pytest.raises(UserError, match=message):
        load_pretrained(str(tmp_path / "x"), ModelConfig(name="vit_test"))


def test_an_orbax_folder_that_is_none(tmp_path):
    (tmp_path / "manifest.ocdbt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is not a sound Orbax checkpoint"):
        load_pretrained(str(tmp_path), ModelConfig(name="vit_test"))
