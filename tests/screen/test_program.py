import sys
from pathlib import Path

import pytest

from jaxtrain.screen.program import command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """Makes programs beside this Python, which the shell finds."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(*names):
        for name in names:
            (tmp_path / name).touch(mode=0o755)

    return make


def test_a_script_of_the_clone_names_its_neighbours_as_it_was_typed(on_path, monkeypatch):
    on_path("python", "jaxtrain")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "--smoke"])
    assert command("predict", "runs/x", 3) == ["python", "scripts/predict.py", "runs/x", "3"]
    assert command("sync") == ["python", "scripts/sync_mlflow.py"]
    assert command("recipes") == ["jaxtrain", "recipes"]  # has no script
    monkeypatch.chdir(ROOT / "tests")
    monkeypatch.setattr(sys, "argv", ["../scripts/sweep.py"])
    assert command("train") == ["python", "../scripts/train.py"]


def test_elsewhere_it_is_the_command(on_path, monkeypatch, tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.py").touch()
    on_path("python", "jaxtrain")
    for started in ("/usr/bin/jaxtrain", str(tmp_path / "scripts" / "train.py"), "-c", ""):
        monkeypatch.setattr(sys, "argv", [started])
        assert command("train", "--seed", "1") == ["jaxtrain", "train", "--seed", "1"]


def test_without_the_command_on_the_path_it_is_the_module(on_path, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert command() == [str(tmp_path / "python"), "-m", "jaxtrain"]
    on_path("python")
    assert command("train") == ["python", "-m", "jaxtrain", "train"]
    monkeypatch.setenv("PATH", f"/nowhere:{tmp_path}")
    on_path("jaxtrain")
    assert command("train") == ["jaxtrain", "train"]


def test_without_its_environment_it_is_called_as_it_was(on_path, monkeypatch, tmp_path):
    on_path("jaxtrain")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path.parent)
    started = f"{tmp_path.name}/jaxtrain"
    monkeypatch.setattr(sys, "argv", [started, "train"])
    assert command("predict", "runs/x") == [started, "predict", "runs/x"]
