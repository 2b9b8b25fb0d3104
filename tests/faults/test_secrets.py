"""Twelve secrets in URIs, environment, command line and config: none is written, sent or printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.errors import RunError
from jaxtrain.runs.run import _failures_written

ROOT = Path(__file__).resolve().parents[2]
SECRETS = [f"cAnArY{number:02d}x7f3d91q" for number in range(12)]
ENVIRONMENT = {
    "MLFLOW_TRACKING_PASSWORD": SECRETS[0],
    "MLFLOW_TRACKING_TOKEN": SECRETS[1],
    "AWS_SECRET_ACCESS_KEY": SECRETS[2],
    "HF_TOKEN": f"hf_{SECRETS[3]}",
    "SOME_PASSWORD": SECRETS[4],
    "DATABASE_URL": f"postgresql://me:{SECRETS[5]}@db/x",
    "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=me;AccountKey={SECRETS[6]};EndpointSuffix=core",
}


def everything_in(folder):
    """Files with their content, and their names."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files} | {"names": "\n".join(map(str, files)).encode()}


@pytest.mark.slow
@pytest.mark.parametrize("alive", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_no_secret_is_anywhere(tmp_path, server, alive):
    """In the run directory, what MLflow got, what was printed, the page of a comparison, and an error's traceback."""
    data = tmp_path / "data.npz"
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8), np.uint8)
    np.savez(data, x_train=images[:60], y_train=np.arange(60) % 4, x_test=images[60:], y_test=np.arange(20) % 4)
    uri = server.uri.replace("://", f"://user:{SECRETS[7]}@")
    config = tmp_path / "config.yaml"
    config.write_text(f"technique: pt\ntracking: {{uri: '{uri}', system_metrics: false}}\n")
    if not alive:
        server.stop()
    here = tmp_path / "here"
    here.mkdir()
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    common = ["--config", str(config), "--model.name", "linear", "--train.steps", "6", "--train.batch_size", "16"]

    def command(script, *arguments):
        line = [sys.executable, str(ROOT / "scripts" / script), *arguments]
        return subprocess.run(line, cwd=here, env=environment, text=True, capture_output=True, timeout=240, check=False)

    done = command("train.py", *common, "--tracking.uri", uri, "--data.name", f"npz:{data}", "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    page = command("benchmark.py", "run", "--out", "page", "--tracking.enabled", "False")
    sweep = tmp_path / "sweep.yaml"
    options = "model: {name: linear}, train: {steps: 6, batch_size: 16}"
    base = f"technique: pt, data: {{name: 'npz:{data}'}}, {options}, tracking: {{uri: '{uri}', system_metrics: false}}"
    sweep.write_text(f"base: {{{base}}}\naxes: {{optimizer.learning_rate: [0.001, 0.01]}}\nworkers: 1\n")
    swept = command("sweep.py", str(sweep))
    assert swept.returncode == 0, swept.stderr
    assert (here / "runs/sweeps/sweep/results/best.yaml").exists()
    printed = "".join(each.stdout + each.stderr for each in (done, page, swept))
    for wrong in (
        ["--technique", "ft", "--model.weights", f"https://u:{SECRETS[8]}@h/weights.safetensors"],
        ["--data.name", f"folder:https://u:{SECRETS[9]}@h/images"],
        ["--data.name", f"https://h/x?sig={SECRETS[10]}"],
        ["--optimizer.learning_rate", f"token={SECRETS[11]}"],
    ):
        failed = command("train.py", "--technique", "pt", *wrong)
        assert failed.returncode == 2, failed.stderr
        printed += failed.stdout + failed.stderr
    written = everything_in(here) | everything_in(server.artifacts)
    written |= {"sent": json.dumps(server.runs).encode(), "experiments": json.dumps(server.experiments).encode()}
    written |= {"printed": printed.encode()}
    assert not alive or server.runs
    found = {secret: [name for name, text in written.items() if secret.encode() in text] for secret in SECRETS}
    assert {secret: names for secret, names in found.items() if names} == {}


def test_the_traceback_in_the_run_directory_has_none(tmp_path):
    with pytest.raises(RunError), _failures_written(tmp_path / "error.log"):
        raise OSError(f"no answer from {ENVIRONMENT['DATABASE_URL']}")
    written = (tmp_path / "error.log").read_text()
    assert "OSError: no answer from postgresql://***@db/x" in written
    assert SECRETS[5] not in written
