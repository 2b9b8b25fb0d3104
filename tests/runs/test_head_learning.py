"""Runs of FE with every head: to their end, whatever a picture does, and stopped in the middle of a fit."""

import os
import signal
import threading
import time

import pytest
import sklearn.utils
from sklearn.tree import DecisionTreeClassifier

from jaxtrain.config import HeadConfig
from jaxtrain.errors import RunError, UserError
from jaxtrain.heads import check_head
from jaxtrain.training.signals import Interrupted
from tests.faults.small_run import embed, fit, result

FAST = ("DecisionTreeClassifier", "LogisticRegression", "RidgeClassifier")


def accepted(name):
    try:
        check_head(HeadConfig(name=name))
    except UserError:
        return False
    return True


NAMES = [name for name, _ in sklearn.utils.all_estimators(type_filter="classifier") if accepted(f"sklearn:{name}")]
HEADS = [pytest.param(f"sklearn:{name}", marks=[] if name in FAST else pytest.mark.slow) for name in NAMES]
HEADS += [pytest.param(name, marks=pytest.mark.slow) for name in ("xgboost", "mlp", "knn", "cosine", "linear")]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Its embeddings are pixels from 0 to 1: some heads do not take negative numbers."""
    return fit(tmp_path_factory.mktemp("backbone") / "pt", data={"mean": [0.0], "std": [1.0]}).run_dir


@pytest.fixture
def few_pictures(monkeypatch):
    """Those that take long and are not what is tested."""
    for name in ("projection", "neighbours"):
        monkeypatch.setattr(f"jaxtrain.runs.pictures.{name}", lambda *_: None)
    monkeypatch.setattr("jaxtrain.evaluation.plots.confusion_matrix", lambda *_: None)


@pytest.mark.usefixtures("few_pictures")
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.filterwarnings("ignore")  # of classifiers that do not converge on noise
def test_every_head_goes_through_a_run(tmp_path, backbone, name):
    if not accepted(name):
        pytest.skip(f"{name} is not installed")
    tuned = {"trials": 5} if name == "xgboost" or name.startswith("sklearn") else {}
    head = {"name": name, **tuned, **({"epochs": 2} if name == "mlp" else {})}
    model = embed(tmp_path / "run", backbone, head=head)
    summary, rows = model.summary, (tmp_path / "run" / "head_grid.csv").read_text().splitlines()
    assert len(rows) == summary["steps"] + 1
    assert summary["test_accuracy"] is not None
    assert (tmp_path / "run" / "head_grid.png").is_file() == (len(rows) > 2)
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("technique", ["fe", "pt"])
def test_no_picture_and_no_upload_ends_a_run(tmp_path, backbone, monkeypatch, caplog, technique):
    def run(name):
        return embed(tmp_path / name, backbone, head={"name": "cosine"}) if technique == "fe" else fit(tmp_path / name)

    whole = run("whole")

    def broken(*_, **__):
        raise KeyError("C")

    drawn = {path.stem for path in (tmp_path / "whole").rglob("*.png")}
    for name in ("grid", "projection", "neighbours"):
        monkeypatch.setattr(f"jaxtrain.runs.pictures.{name}", broken)
    for name in ("learning_curves", "confusion_matrix"):
        monkeypatch.setattr(f"jaxtrain.evaluation.plots.{name}", broken)
    monkeypatch.setattr("jaxtrain.runs.run.track_evaluation", broken)
    again = run("broken")
    assert result(again) == result(whole)
    assert not list((tmp_path / "broken").rglob("*.png"))
    for name in drawn:
        assert sum(f"{name}.png" in line for line in caplog.messages) == 1
    assert any("the evaluation in MLflow" in line for line in caplog.messages)


@pytest.mark.slow
@pytest.mark.usefixtures("few_pictures")
def test_a_run_that_crashed_after_its_head_goes_on(tmp_path, backbone, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("jaxtrain.runs.head_learning.write_csv", lambda *_: {}["C"])
        with pytest.raises(RunError, match="KeyError"):
            embed(tmp_path / "run", backbone)
    assert result(embed(tmp_path / "run", backbone)) == result(embed(tmp_path / "whole", backbone))


@pytest.mark.usefixtures("few_pictures")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_acts_inside_a_fit(tmp_path, backbone, monkeypatch, number):
    """The second fit sleeps as a library does that computes in C: only the thread that it runs in waits."""
    fits, released, real = [], threading.Event(), DecisionTreeClassifier.fit

    def slow(self, *args, **options):
        fits.append(time.monotonic())
        if len(fits) == 2:
            os.kill(os.getpid(), number)
            released.wait(60)
        return real(self, *args, **options)

    head = {"name": "sklearn:DecisionTreeClassifier", "trials": 4}
    with monkeypatch.context() as patch:
        patch.setattr(DecisionTreeClassifier, "fit", slow)
        with pytest.raises(Interrupted, match=r"continue with: .*run_dir=") as caught:
            embed(tmp_path / "run", backbone, head=head)
        assert time.monotonic() - fits[1] < 10
        released.set()
        for thread in threading.enumerate():
            if thread.name == "head":
                thread.join(10)
        assert len(fits) == 2  # the thread that was left behind tries no other setting
    assert caught.value.exit_code == 128 + number
    whole = embed(tmp_path / "whole", backbone, head=head)
    assert result(embed(tmp_path / "run", backbone, head=head)) == result(whole)
