"""What is installed from a wheel is whole: the command, and the recipes, far from any clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the wheel of this clone is installed."""
    place = tmp_path_factory.mktemp("wheel")
    clone = place / "clone"
    clone.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    for name in ("jaxtrain", "configs"):
        shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", place, clone], check=True, timeout=300)
    shutil.rmtree(clone)
    (wheel,) = place.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", place / "site", wheel], check=True, timeout=300)
    return place / "site"


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
