"""SIGTERM and SIGINT in every phase: saved, the right exit code, and the same command goes on."""

import os
import re
import signal
import time

import pytest

from jaxtrain.training.signals import Interrupted
from tests.faults.small_run import embed, fit, history, result
from tests.marks import mostly_slow

PHASES = {
    "compiling": "jaxtrain.training.lanes.compile_step",
    "training": "jaxtrain.runs.callbacks.Recording.log",
    "validating": "jaxtrain.training.inference.Inference.metrics",
    "saving": "jaxtrain.training.checkpoints.save_tree",
    "testing": "jaxtrain.runs.run.evaluate_on_test",
    "embedding": "jaxtrain.embeddings.files.ShardFiles.write",
}
FAST = [("training", signal.SIGTERM), ("saving", signal.SIGTERM), ("embedding", signal.SIGINT)]
CASES = [
    pytest.param(phase, number, marks=[] if (phase, number) in FAST else pytest.mark.slow)
    for phase in PHASES
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Undisturbed runs by technique."""
    folder = tmp_path_factory.mktemp("whole")
    pt = fit(folder / "pt")
    return {"pt": result(pt), "fe": result(embed(folder / "fe", pt.run_dir)), "weights": pt.run_dir}


def send_at(monkeypatch, target, number, calls):
    """The signal comes with a call of a function: the first, the second, ..."""
    from pkgutil import resolve_name

    real, seen = resolve_name(target), []

    def called(*args, **kwargs):
        seen.append(time.monotonic())
        if len(seen) == calls:
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    monkeypatch.setattr(target, called)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "number"), CASES)
def test_a_signal_in_any_phase(tmp_path, whole, monkeypatch, phase, number):
    technique = "fe" if phase == "embedding" else "pt"

    def again():
        return embed(tmp_path / "run", whole["weights"]) if technique == "fe" else fit(tmp_path / "run")

    with monkeypatch.context() as patch:
        later = ("training", "validating", "saving")
        seen = send_at(patch, PHASES[phase], number, calls=2 if phase in later else 1)
        with pytest.raises(Interrupted) as caught:
            again()
    assert time.monotonic() - seen[-1] < 30
    assert caught.value.exit_code == 128 + number
    assert re.search(r"continue with: .*fit\(\).* run_dir=", str(caught.value))  # no command has these arrays
    assert not (tmp_path / "run" / "summary.json").exists()
    if technique == "pt":
        saved = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("0*"))
        assert saved == 40 if phase == "testing" else saved < 20  # there and then, not where the run would end
    else:
        assert len(list((tmp_path / "run-store").rglob("*.npy"))) == 1
    assert result(again()) == whole[technique]


@pytest.mark.parametrize("calls", mostly_slow([2, 5], {2}))  # the fifth is that of the last step
def test_a_validation_is_cut_off_and_comes_first_when_the_run_goes_on(tmp_path, whole, monkeypatch, calls):
    with monkeypatch.context() as patch:
        send_at(patch, PHASES["validating"], signal.SIGTERM, calls=calls)
        with pytest.raises(Interrupted):
            fit(tmp_path / "run")
    validated = [record for record in history(tmp_path / "run") if "val/loss" in record]
    assert len(validated) == calls - 1
    assert result(fit(tmp_path / "run")) == whole["pt"]
