"""JAX is told to use a device that is not there: one line from every command, and nothing is left behind."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxtrain import PTClassifier

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    "train --technique pt --run-dir new",
    "train --technique ft --model.weights a",
    "train --technique pt --smoke",
    "train --technique pt --print-config",
    "predict a image.png",
    "benchmark a b",
    "sweep sweep.yaml",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    for seed, name in enumerate("ab"):
        model = PTClassifier(model={"name": "linear"}, train={"steps": 1}, seed=seed, run_dir=path / name, quiet=True)
        model.bind(model.config.replace(**{"tracking.enabled": False})).fit(images, labels, test=(images, labels))
    Image.fromarray(images[0]).save(path / "image.png")
    axes = "{optimizer.learning_rate: [0.1, 0.2]}"
    (path / "sweep.yaml").write_text(f"base: {{technique: pt, model: {{name: linear}}}}\naxes: {axes}\n")
    return path


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there may be CUDA")
@pytest.mark.parametrize(
    ("command", "platform"),
    [
        (COMMANDS[0], "cuda"),
        pytest.param(COMMANDS[0], "nonsense", marks=pytest.mark.slow),
        *(pytest.param(command, "cuda", marks=pytest.mark.slow) for command in COMMANDS[1:]),
    ],
)
def test_it_is_one_line_and_nothing_is_left(command, platform, folder):
    before = sorted(folder.rglob("*"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": platform}
    words = [sys.executable, "-m", "jaxtrain", *command.split()]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert f"JAX_PLATFORMS={platform}" in done.stderr
    assert sorted(folder.rglob("*")) == before
