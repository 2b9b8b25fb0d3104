"""Every file under configs/sweeps/ is planned as it stands, and its first settings train, a few steps each."""

from pathlib import Path

import pytest

from jaxtrain.errors import UserError
from jaxtrain.sweeps.config import SweepConfig, load_sweep
from jaxtrain.sweeps.parent import Parent
from jaxtrain.sweeps.plan import describe, make_plan
from jaxtrain.sweeps.report import results
from jaxtrain.sweeps.shown import SweepResults, sweep_results
from jaxtrain.sweeps.study import Trials
from jaxtrain.sweeps.worker import Worker
from jaxtrain.training.signals import StopRequest

FILES = sorted((Path(__file__).resolve().parents[2] / "configs" / "sweeps").glob("*.yaml"))
SLOW = {"techniques_digits", "pt_digits", "pt_digits_tpe"}


def small(sweep):
    """The same sweep with steps instead of epochs, one seed, and for a search two proposals."""
    short = {"train.epochs": None, "train.steps": 2, "schedule.warmup_epochs": 0.1, "tracking.enabled": False}
    budget = {"trials": 2} if sweep.combine == "tpe" else {}
    changes = {"base": sweep.base.replace(**short), "seeds": (0,), "budget": budget, "test": False}
    return SweepConfig.model_validate({**dict(sweep), **changes})


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else []) for path in FILES]
)
def test_sweep(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = load_sweep(path)
    plan = make_plan(small(whole), path)
    assert describe(make_plan(whole, path), 0)[0].startswith(f"Sweep {path.stem}: ")
    trials = Trials(plan)
    slots = trials.fill()
    said = []
    with StopRequest() as stop:
        assert Worker(plan, trials, Parent(plan), said.append, stop).work()
    found = results(plan, trials)
    assert len(said) == slots
    assert found.best is not None
    assert {one.how for one in found.outcomes} <= {"done", "pruned"}
    shown = SweepResults(found, plan.sweep.folder)
    assert len(shown.to_pandas()) == len(found.ranked)
    assert shown.to_pandas()["estimate_mean"][0] == pytest.approx(found.best.estimate.mean)
    assert "fewer than 3 seeds" in repr(shown)
    assert shown._repr_html_().count("<tr") == 1 + min(len(found.ranked), 10)
    assert "data:image/svg+xml" in shown._repr_html_()


def test_a_sweep_that_has_not_begun_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no runs in runs/sweeps/pt_digits: .* jaxtrain sweep sweeps/pt_digits"):
        sweep_results("sweeps/pt_digits")
    assert not (tmp_path / "runs").exists()
