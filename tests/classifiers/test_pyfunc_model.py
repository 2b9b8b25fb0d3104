from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from mlflow.utils.file_utils import local_file_uri_to_path
from numpy.typing import NDArray

import jaxtrain
from jaxtrain.config import TrackingConfig
from jaxtrain.tracking import Tracker
from jaxtrain.tracking.upload import Upload
from tests.tracking.mlflow_server import _database, _quick_failures, sqlite_uri  # noqa: F401


class _Classifier:
    """Stands in for what `jaxtrain.load` gives: bright images are the second class."""

    def __init__(self, folder: str, *, trust_imports: bool) -> None:
        self.class_names = tuple(Path(folder, "names.txt").read_text().split())

    def predict_proba(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert images.dtype == np.uint8
        assert images.ndim == 4
        score = images.reshape(len(images), -1).mean(axis=1, dtype=np.float32) / 255
        return np.stack([1 - score, score], axis=1)


def _no_pickle(*arguments: object, **options: object) -> None:
    raise AssertionError("something was unpickled")


@pytest.mark.slow
def test_the_stored_model_classifies_images_without_pickle(
    tmp_path: Path,
    sqlite_uri: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "model").mkdir(parents=True)
    (run_dir / "model" / "names.txt").write_text("dark bright")
    config = TrackingConfig(uri=sqlite_uri, system_metrics=False)
    tracker = Tracker.start(config, run_dir=run_dir, experiment="PT", run_name="x", params={}, tags={})
    tracker.log_model(run_dir / "model", np.zeros((1, 4, 4, 1), np.uint8), ["dark", "bright"], step=7)
    report = tracker.finish("FINISHED", timeout=120)
    assert report.problem is None

    upload = Upload(run_dir, sqlite_uri, live=False)
    upload.push()
    assert upload.state.requests_refused == []
    client, model_id = upload._client, upload.state.model_id
    model = client.get_logged_model(model_id)
    assert (model.status.value, model.source_run_id) == ("READY", report.run_id)
    (output,) = client.get_run(report.run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model_id, 7)
    folder = Path(local_file_uri_to_path(model.artifact_location))
    stored = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "pyfunc_model.py", "names.txt", "requirements.txt"} <= stored
    assert not any(name.endswith((".pkl", ".pickle")) for name in stored)
    requirements = Path(folder, "requirements.txt").read_text().splitlines()
    assert any(line.startswith("jax==") for line in requirements)

    import cloudpickle
    import mlflow.pyfunc

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setattr(jaxtrain, "load", _Classifier, raising=False)
    for module in (pickle, cloudpickle):
        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(module, name, _no_pickle, raising=False)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        loaded = mlflow.pyfunc.load_model(model.artifact_location)
    assert not [warning for warning in warned if "predict" in str(warning.message)]
    images = np.stack([np.full((4, 4, 1), value, np.uint8) for value in (0, 51, 255)])
    table = loaded.predict(images)
    assert list(table["label"]) == ["dark", "dark", "bright"]
    assert list(table["probability"]) == pytest.approx([1.0, 0.8, 1.0])
    assert table["probabilities"][1] == pytest.approx([0.8, 0.2])
    assert loaded.metadata.metadata["class_names"] == ["dark", "bright"]
    with pytest.raises(mlflow.MlflowException, match="uint8"):
        loaded.predict(images.astype(np.float64))


@pytest.mark.parametrize("images", [np.zeros((1, 4, 4, 1), np.float32), np.zeros((4, 4, 1), np.uint8)])
def test_an_example_that_is_no_images_is_refused(tmp_path: Path, images: np.ndarray) -> None:
    tracker = Tracker(tmp_path, None)
    with pytest.raises(ValueError, match="uint8"):
        tracker.log_model(tmp_path, images, ["a"])
