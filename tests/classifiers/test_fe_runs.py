"""Feature extraction as a command: killed anywhere, stopped by a signal, on several devices, run again."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxtrain import PTClassifier

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with weights, 3,000 images, and an undisturbed run on them."""
    folder = tmp_path_factory.mktemp("fe")
    generator = np.random.default_rng(0)
    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype(np.uint8)
    options = {"model": {"name": "resnet_tiny"}, "train": {"steps": 20}, "data": {"image_size": 32}}
    PTClassifier(run_dir=folder / "pt", quiet=True, tracking={"enabled": False}, **options).fit(images, digits.target)
    more = generator.integers(0, 256, (3000, 32, 32), np.uint8)
    labels = np.arange(3000) % 3
    more[labels == 1, :16] //= 2
    np.savez(folder / "data.npz", x_train=more[:2500], y_train=labels[:2500], x_test=more[2500:], y_test=labels[2500:])
    (folder / "whole").mkdir()
    return folder, finish(folder, "whole"), contents(folder / "whole" / "store")


def start(folder: Path, name: str, *options: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, str(ROOT / "scripts" / "train.py"), "--technique", "fe", "--model.weights", str(folder / "pt"),
        "--data.name", f"npz:{folder / 'data.npz'}", "--run-dir", str(folder / name / "run"), "--features.store",
        str(folder / name / "store"), "--features.batch_size", "32", *options,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.Popen(
        command, cwd=folder / name, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(folder: Path, name: str) -> dict:
    process = start(folder, name)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return json.loads((folder / name / "run" / "summary.json").read_text())


def contents(store: Path) -> dict[str, str]:
    """Digests of everything in the store that is part of an embedding."""
    files = (path for path in store.rglob("*") if path.is_file() and path.suffix in (".npy", ".json"))
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_embedded_once(place):
    _, summary, _ = place
    assert summary["cache_hit"] is False
    assert summary["embedding_dim"] == 64
    assert summary["mlflow_run_id"]


def kill_and_finish(place, name: str, seconds: float) -> None:
    folder, summary, whole = place
    (folder / name).mkdir()
    process = start(folder, name)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    again = finish(folder, name)
    assert again["params_sha256"] == summary["params_sha256"]
    assert again["test_loss"] == summary["test_loss"]
    assert contents(folder / name / "store") == whole


def test_killed_while_embedding_the_store_is_the_same(place):
    folder, summary, whole = place
    (folder / "killed").mkdir()
    process = start(folder, "killed")
    while process.poll() is None and not list((folder / "killed" / "store").rglob("*.npy")):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert contents(folder / "killed" / "store") != whole
    assert finish(folder, "killed")["params_sha256"] == summary["params_sha256"]
    assert contents(folder / "killed" / "store") == whole


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_kills_at_random_moments_leave_the_same_store(place, kills):
    generator = random.Random(0)
    for number in range(kills):
        kill_and_finish(place, f"{kills} kills, {number}", generator.uniform(1.0, 10.0))


def test_a_signal_while_embedding_keeps_the_shards(place):
    folder, summary, whole = place
    (folder / "signal").mkdir()
    process = start(folder, "signal")
    while process.poll() is None and not list((folder / "signal" / "store").rglob("*.npy")):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert re.search(r"continue with: .*train.* --technique fe --run-dir", output)
    again = finish(folder, "signal")
    assert again["params_sha256"] == summary["params_sha256"]
    assert contents(folder / "signal" / "store") == whole


def test_strategies_on_eight_devices_agree_with_one():
    command = [sys.executable, str(Path(__file__).with_name("fe_devices.py"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    one = results.pop("one")
    for name, other in results.items():
        np.testing.assert_allclose(other["vectors"], one["vectors"], rtol=1e-4, atol=1e-4, err_msg=name)
        assert other["test_accuracy"] == pytest.approx(one["test_accuracy"], abs=0.011), name
        assert other["val_accuracy"] == pytest.approx(one["val_accuracy"], abs=0.021), name
