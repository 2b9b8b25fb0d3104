from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.utils.file_utils import local_file_uri_to_path
from PIL import Image

import jaxtrain
import jaxtrain.tracking
from jaxtrain.data.base import FileSource
from jaxtrain.data.decode import decode_image
from jaxtrain.tracking import Tracker

ISOLATED = """
import json, pickle, sys, time
sys.path.append(sys.argv[1])  # without what an editable install adds
import cloudpickle, mlflow.pyfunc, numpy as np, pandas as pd
assert not [1 for place in sys.path if place == "jaxtrain"]
def refuse(*arguments, **options):
    raise AssertionError("something was unpickled")
for module in (pickle, cloudpickle):
    for name in ("load", "loads"):
        setattr(module, name, refuse)
model = mlflow.pyfunc.load_model(sys.argv[2])
import jaxtrain
assert jaxtrain.__file__.startswith(sys.argv[2]), jaxtrain.__file__
files = [open(path, "rb").read() for path in sys.argv[3:]]
print(json.dumps(model.predict(pd.DataFrame({"image": files})).to_dict("list")))
"""
"""A process that has the packages of this environment, but not jaxtrain."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A trained run, its stored model and some pictures."""
    folder = tmp_path_factory.mktemp("stored")
    images, labels = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), np.uint8), np.arange(40) % 2
    options = {"model": {"name": "mlp_tiny"}, "train": {"steps": 2, "batch_size": 8}, "data": {"test_fraction": 0.2}}
    tracking = {"uri": f"sqlite:///{folder}/mlflow.db", "system_metrics": False}
    run = jaxtrain.PTClassifier(**options, tracking=tracking, run_dir=folder / "run", quiet=True)
    run.fit(images, np.array(["cat", "dog"])[labels])
    jaxtrain.tracking.sync_run(folder / "run", tracking["uri"])
    client = mlflow.MlflowClient(tracking["uri"])
    (model,) = client.search_logged_models([client.get_experiment_by_name("PT").experiment_id])
    files = [folder / "a.jpg", folder / "b.png", folder / "c.webp"]
    for number, file in enumerate(files):
        shape = (20 + 9 * number, 31, 3)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, shape, np.uint8)).save(file)
    return folder, model, files


@pytest.mark.slow
def test_the_stored_model_works_where_jaxtrain_is_not_and_without_pickle(stored):
    folder, model, files = stored
    place = local_file_uri_to_path(model.artifact_location)
    written = [path for path in Path(place).rglob("*") if path.is_file()]
    assert not any(path.suffix in (".pkl", ".pickle", ".pyc") for path in written)
    requirements = Path(place, "requirements.txt").read_text().splitlines()
    assert any(line.startswith("jax==") for line in requirements)
    assert not any(line.startswith("jaxtrain") for line in requirements)
    site = Path(mlflow.__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", ISOLATED, str(site), place, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    classifier = jaxtrain.load(folder / "run")
    wanted = classifier.predict_proba(FileSource(files, np.zeros(3, np.int32)))
    np.testing.assert_allclose(answer["probabilities"], wanted, rtol=1e-5)
    assert answer["label"] == [classifier.class_names[best] for best in wanted.argmax(1)]
    assert model.metrics
    assert model.params["model.name"] == "mlp_tiny"


@pytest.mark.slow
def test_every_form_of_images_and_one_line_for_what_is_none(stored):
    folder, model, files = stored
    loaded = mlflow.pyfunc.load_model(local_file_uri_to_path(model.artifact_location))
    as_bytes = [file.read_bytes() for file in files]
    as_text = [base64.b64encode(file).decode() for file in as_bytes]
    pixels = [decode_image(file, channels=3, max_pixels=10**6) for file in as_bytes]
    wanted = loaded.predict(pd.DataFrame({"image": as_bytes}))
    for form in (
        pd.DataFrame({"image": as_text}),
        {"image": as_text},
        as_text,
        pixels,
        [each.tolist() for each in pixels],
    ):
        pd.testing.assert_frame_equal(loaded.predict(form), wanted)
    assert len(loaded.predict(np.zeros((5, 7, 9, 3), np.uint8))) == 5
    assert len(loaded.predict(np.zeros((2, 12, 12), np.uint8))) == 2
    (first, second), *_ = loaded.predict(as_text, params={"top_k": 2})["labels"]
    assert {first, second} == {"cat", "dog"}
    bomb = Image.new("1", (20000, 20000))
    bomb.save(folder / "bomb.png")
    for wrong, reason in (
        ({"image": ["no base64!"]}, "image 0"),
        ({"image": [as_text[0], "aGVsbG8="]}, "image 1: not an image"),
        ({"image": [as_bytes[0][:200]]}, "image 0"),
        ({"image": [(folder / "bomb.png").read_bytes()]}, "400000000 pixels"),
        ({"picture": as_text}, "'image'"),
        ({"image": []}, "between 1 and"),
        (np.zeros((1, 4, 4, 3), np.float32), "float32"),
        (np.full((1, 4, 4, 3), 256), "256"),
        (np.zeros((1, 4, 4, 7), np.uint8), "[4, 4, 7]"),
        ({"image": [None]}, "image 0"),
    ):
        with pytest.raises(mlflow.MlflowException, match=re.escape(reason)) as refused:
            loaded.predict(wrong)
        assert refused.value.error_code == "BAD_REQUEST"
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("images", [np.zeros((1, 4, 4, 1), np.float32), np.zeros((4, 4, 1), np.uint8)])
def test_an_example_that_is_no_images_is_refused(tmp_path: Path, images: np.ndarray) -> None:
    tracker = Tracker(tmp_path, None)
    with pytest.raises(ValueError, match="uint8"):
        tracker.log_model(tmp_path, images, ["a"])
