"""Directories that cannot be written, are in use, or were begun with other options."""

import errno
import os
import threading
from pathlib import Path

import pytest

from jaxtrain.errors import UserError
from tests.faults.small_run import fit, result


@pytest.fixture
def nothing_compiles(monkeypatch):
    """Building a model is an error."""

    def built(*_):
        raise AssertionError("the model is built already")

    monkeypatch.setattr("jaxtrain.runs.stepwise.prepare", built)


def read_only(function):
    """As on a file system that is mounted read-only: also for root."""

    def refusing(path, *args, **kwargs):
        if "readonly" in str(path) and args[:1] != (os.O_RDONLY,):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return function(path, *args, **kwargs)

    return refusing


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize("place", ["/proc/none/run", "file/run", "readonly/run", "readonly", "file"])
def test_an_output_that_cannot_be_written_is_told_first(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("readonly").mkdir()
    for name in ("mkdir", "open"):
        monkeypatch.setattr(os, name, read_only(getattr(os, name)))
    with pytest.raises(UserError) as caught:
        fit(Path(place))
    told = str(caught.value)
    assert place.split("/")[0] in told
    assert "cannot be written" in told
    assert told.endswith("choose another with --run-dir")
    assert "\n" not in told


@pytest.mark.usefixtures("nothing_compiles")
def test_checkpoints_that_cannot_be_kept_are_told_first(tmp_path, monkeypatch):
    real = Path.mkdir

    def refused(path, *args, **kwargs):
        if path.name == "checkpoints":
            raise OSError(30, "Read-only file system")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(UserError, match=r"checkpoints cannot be kept in .*: Read-only file system"):
        fit(tmp_path / "run")


def test_a_missing_directory_is_made(tmp_path):
    assert fit(tmp_path / "not" / "there" / "yet", train={"steps": 4}).summary["steps"] == 4


@pytest.mark.slow
def test_two_runs_on_one_directory(tmp_path, monkeypatch):
    """The second is refused at once and does the first no harm."""
    from jaxtrain.runs.callbacks import Recording

    expected, others, refused, log = result(fit(tmp_path / "whole")), [], [], Recording.log

    def second():
        try:
            fit(tmp_path / "run")
        except UserError as error:
            refused.append(str(error))

    def meanwhile(self, step, metrics):
        if not others:  # once, also where it is let in
            others.append(threading.Thread(target=second))
            others[0].start()
            others[0].join()
        log(self, step, metrics)

    monkeypatch.setattr(Recording, "log", meanwhile)
    model = fit(tmp_path / "run")
    assert len(refused) == 1
    assert f"run is in use by process {os.getpid()} on" in refused[0]
    assert result(model) == expected


def test_other_options_are_refused_by_name_and_free_ones_are_not(tmp_path):
    fit(tmp_path / "run", train={"steps": 8})
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(UserError) as caught:
        fit(tmp_path / "run", train={"steps": 8}, optimizer={"learning_rate": 0.5}, seed=3)
    assert "optimizer.learning_rate 0.001 -> 0.5" in str(caught.value)
    assert "seed 0 -> 3" in str(caught.value)
    fit(tmp_path / "run", train={"steps": 8, "log_every": 2, "on_nonfinite": "skip", "hang_minutes": 3.0})
