"""ONNX programs give the logits of the model in onnxruntime; where jax2onnx is not installed, one line says how."""

import json

import numpy as np
import pytest

import jaxtrain
from jaxtrain.classifiers import export
from jaxtrain.classifiers.export import export_onnx
from jaxtrain.cli.main import run
from jaxtrain.config import Config
from jaxtrain.data.base import ArraySource
from jaxtrain.errors import RunError, UserError
from jaxtrain.runs.fitted import Fitted
from jaxtrain.training.technique import Binding
from tests.classifiers.test_export import FAMILIES, trained
from tests.models.weights.test_golden import network


def untrained(name, side=32):
    """A classifier of five classes whose weights are drawn, by digits as images."""
    weights, values = network(name, side, 3), (0.5, 0.5, 0.5)
    data = {"image_size": side, "channels": 3, "bits": 8, "mean": values, "std": values, "crop_pct": 1.0}
    data |= {"interpolation": "bilinear", "task": "multiclass"}
    config = Config(data=data, model={"name": name, "dtype": "float32"})
    classifier = jaxtrain.PTClassifier(config)
    state = {path: np.abs(leaf) + 0.5 if path.endswith("/var") else leaf for path, leaf in weights.model_state.items()}
    tree = {"params": weights.params, "frozen": {}, "model_state": state}
    classifier._fitted = Fitted(classifier.bind(config, Binding(5)), tuple("abcde"), tree)
    return classifier


def agrees(classifier, folder):
    """In onnxruntime, for two sizes of the batch; the session."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [32, 32, 3])
    for count in (1, 5):
        images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)
        (logits,) = session.run(["logits"], {"images": images})
        wanted = classifier.predict_logits(ArraySource(images, np.zeros(count, np.int32), prepared=True))
        np.testing.assert_allclose(logits, wanted, atol=1e-4)
    return session


@pytest.mark.slow
@pytest.mark.parametrize("model", FAMILIES)
def test_every_family(tmp_path, model):
    pytest.importorskip("jax2onnx")
    classifier = untrained(model)
    agrees(classifier, export_onnx(classifier, tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize("technique", ["fe", "ft"])
def test_runs_that_start_from_weights(tmp_path, technique):
    pytest.importorskip("jax2onnx")
    (tmp_path / "pt").mkdir()
    once = {"train": {"steps": 1, "batch_size": 8}}
    trained(jaxtrain.PTClassifier, tmp_path / "pt", "vit_test", **once)
    kind, options = (jaxtrain.FEClassifier, {}) if technique == "fe" else (jaxtrain.FTClassifier, once)
    trained(kind, tmp_path, model={"weights": str(tmp_path / "pt" / "run")}, **options)
    run(["export", str(tmp_path / "run"), "--to", "onnx", "--out", str(tmp_path / "out")])
    session = agrees(jaxtrain.load(tmp_path / "run"), tmp_path / "out")
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["a", "b"]
    assert about["input"] == "uint8[batch, 32, 32, 3]"


@pytest.mark.slow
def test_several_labels_per_image(tmp_path):
    pytest.importorskip("jax2onnx")
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
    labels = np.random.default_rng(1).integers(0, 2, (24, 3)).astype(np.int8)
    options = {"model": {"name": "mlp_tiny"}, "train": {"steps": 1, "batch_size": 8}, "tracking": {"enabled": False}}
    classifier = jaxtrain.PTClassifier(**options, quiet=True, run_dir=tmp_path / "run").fit(images, labels)
    session = agrees(classifier, export_onnx(classifier, tmp_path / "out"))
    about = session.get_modelmeta().custom_metadata_map
    assert about["task"] == "multilabel"
    assert json.loads(about["thresholds"]) == list(classifier.thresholds)


@pytest.mark.slow
def test_a_program_that_differs_is_not_left_behind(tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx")
    monkeypatch.setattr(export, "_logits", lambda classifier: lambda images: images[:, 0, 0, :1] * np.ones(5, "f4"))
    with pytest.raises(RunError, match="logits differ"):
        export_onnx(untrained("mlp_tiny"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_one_line_with_the_commands(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "jax2onnx" else name)
    with pytest.raises(UserError, match="pip install --no-deps jax2onnx==") as error:
        export_onnx(untrained("mlp_tiny"), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
