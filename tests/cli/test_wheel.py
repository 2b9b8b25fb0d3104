"""What is installed from a wheel is whole: the command, and the recipes, far from any clone."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.multihost.launch import free_port

ROOT = Path(__file__).resolve().parents[2]


def copied(clone):
    """A clone, as far as it is installed: what the Dockerfile copies."""
    clone.mkdir()
    lines = [line.split()[1:-1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    for name in [name for names in lines for name in names]:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, clone)
    return clone


def pip(*words):
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *words]
    subprocess.run(command, check=True, timeout=300)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the wheel of this clone is installed."""
    place = tmp_path_factory.mktemp("wheel")
    clone = copied(place / "clone")
    pip("wheel", "--no-deps", "-w", place, clone)
    shutil.rmtree(clone)
    (wheel,) = place.glob("*.whl")
    pip("install", "--no-deps", "--target", place / "site", wheel)
    return place / "site"


@pytest.mark.slow
def test_a_script_in_the_folder_above_a_clone_finds_the_package(tmp_path):
    """Its folder comes first on the path, and the clone in it has the name of the package."""
    clone = copied(tmp_path / "jaxtrain")
    pip("install", "--no-deps", "--ignore-installed", "--prefix", tmp_path / "environment", "-e", clone)
    (site,) = (tmp_path / "environment").rglob("site-packages")
    script = tmp_path / "script.py"
    as_in_an_environment = f"import site; site.addsitedir({str(site)!r})"
    script.write_text(f"{as_in_an_environment}\nfrom jaxtrain import UserError, errors\nprint(errors.__file__)\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # -S: the environment this test itself runs in has an editable jaxtrain too, which would come first
    done = subprocess.run([sys.executable, "-S", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert str(clone / "jaxtrain" / "errors.py") in done.stdout


@pytest.mark.slow
def test_the_command_and_the_recipes_of_a_wheel(installed, tmp_path):
    def jaxtrain(*words):
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        command = [installed / "bin" / "jaxtrain", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    (first, *_) = jaxtrain("--version").stdout.splitlines()
    assert first.startswith("jaxtrain ")
    assert len(jaxtrain("recipes").stdout.splitlines()) == len(list((ROOT / "configs").glob("*/*.yaml")))
    printed = jaxtrain("train", "--config", "pt/digits", "--print-config")
    assert (printed.returncode, "epochs: 150.0" in printed.stdout) == (0, True), printed.stderr
    planned = jaxtrain("sweep", "sweeps/pt_digits", "--plan")
    assert planned.returncode == 0, planned.stderr
    wrong = jaxtrain("train", "--config", "pt/digit")
    assert (wrong.returncode, "'pt/digits'" in wrong.stderr, wrong.stderr.count("\n")) == (2, True, 1)
    (tmp_path / "x.png").touch()
    missing = jaxtrain("predict", "nowhere", "x.png")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1), missing.stderr


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("pyenv") is None, reason="MLflow's default environment manager needs pyenv")
def test_a_model_is_served_by_mlflows_default_environment_manager(installed, tmp_path):
    """In an environment that MLflow makes from the model's requirements, jaxtrain's wheel among them: minutes."""
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "MLFLOW_ENV_ROOT": str(tmp_path / "envs")}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | store
    train = [installed / "bin" / "jaxtrain", "train", "--technique", "pt", "--train.epochs", "3"]
    train += ["--tracking.register", "digits"]
    subprocess.run(train, check=True, cwd=tmp_path, env=environment | {"PYTHONPATH": str(installed)})
    port = free_port()
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/digits/1", "--port", str(port)]
    server = subprocess.Popen(serve, cwd=tmp_path, env=environment, start_new_session=True)
    try:
        bunch = load_digits()
        _, picture = cv2.imencode(".jpg", cv2.resize((bunch.images[0] * 15.9).astype(np.uint8), (80, 80)))
        row = {"image": base64.b64encode(picture.tobytes()).decode()}
        body = json.dumps({"dataframe_records": [row], "params": {"top_k": 3}}).encode()
        address = f"http://127.0.0.1:{port}/invocations"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        (answer,) = json.loads(answered(request, server))["predictions"]
        assert (answer["label"], len(answer["labels"])) == ("0", 3)
    finally:
        os.killpg(server.pid, signal.SIGKILL)


def answered(request, server):
    """What a server says once it is there."""
    while True:
        assert server.poll() is None
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.read()
        except urllib.error.URLError:
            time.sleep(1)
