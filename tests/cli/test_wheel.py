"""What is installed from a wheel is whole: the command, and the recipes, far from any clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
