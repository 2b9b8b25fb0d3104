"""Runs side by side are the runs they would have been alone; one that diverges costs no other."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import PTClassifier
from jaxtrain.data.sources import load_dataset
from jaxtrain.runs.group import run_together
from jaxtrain.runs.learning import Part, Pruned
from jaxtrain.runs.program import Programs
from jaxtrain.runs.run import run
from jaxtrain.runs.stepwise import Stepwise
from jaxtrain.tracking.tracker import Tracker
from jaxtrain.training.nonfinite import Diverged
from jaxtrain.training.signals import Interrupted

# Where a ReLU or a maximum is decided by the last bit, float32's noise jumps: a CNN's two ways are 3e-3 apart after 10
# to 50 steps, on another processor at another step. A network of smooth functions stays within 3e-7.
MODELS = [
    ("mlp_tiny", "adamw", 15),
    pytest.param("convnext_test", "adamw", 50, marks=pytest.mark.slow),
    pytest.param("cnn_small", "sgd", 6, marks=pytest.mark.slow),
]
SETTINGS = [(1e-3, 0, 0.0), (3e-3, 1, 0.1), (1e-2, 2, 0.0)]


def classifier(run_dir, rate, seed=0, smoothing=0.0, *, model="mlp_tiny", optimizer="adamw", steps=50, **train):
    return PTClassifier(
        run_dir=run_dir, seed=seed, quiet=True, model={"name": model},
        optimizer={"name": optimizer, "learning_rate": rate},
        train={"steps": steps, "label_smoothing": smoothing, "log_every": 1, **train},
        tracking={"enabled": False}, parallel={"devices": 1},
    )  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset(classifier(None, 1e-3).data_config)


def part(programs, evaluated=lambda step, metrics: None):
    return Part(programs, lambda final: {}, evaluated)


def together(classifiers, dataset, **options):
    programs = Programs()
    return run_together([(one, part(programs, **options)) for one in classifiers], dataset)


def records(one):
    return [
        json.loads(line)
        for line in (one.config.run_dir or one.run_dir).joinpath("metrics.jsonl").read_text().splitlines()
    ]


def losses(one, name="train/loss"):
    found = [record[name] for record in records(one) if name in record]
    assert found
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "optimizer", "steps"), MODELS)
def test_members_equal_their_solo_runs(model, optimizer, steps, dataset, tmp_path):
    how = {"model": model, "optimizer": optimizer, "steps": steps}
    members = [classifier(tmp_path / f"member{i}", *s, **how) for i, s in enumerate(SETTINGS)]
    results = together(members, dataset)
    for number, (setting, member) in enumerate(zip(SETTINGS, results, strict=True)):
        alone = run(classifier(tmp_path / f"alone{number}", *setting, **how), dataset)
        np.testing.assert_allclose(losses(member), losses(alone), rtol=1e-4)
        np.testing.assert_allclose(losses(member, "val/loss"), losses(alone, "val/loss"), rtol=1e-4)
        assert member.summary["val_accuracy"] == alone.summary["val_accuracy"]
        tested = records(alone)[-1]
        assert [r.keys() for r in records(member)] == [r.keys() for r in records(alone) if r != tested]
        assert member.summary["test_accuracy"] is None
        assert (member.run_dir / "model").is_dir()


@pytest.mark.slow
def test_a_member_that_diverges_is_out_and_the_others_go_on(dataset, tmp_path):
    members = [classifier(tmp_path / str(i), rate, weight) for i, (rate, weight) in enumerate([(1e-3, 0), (1e30, 0)])]
    first, second = together(members, dataset)
    assert isinstance(second, Diverged)
    assert first.summary["steps"] == 50
    assert not (tmp_path / "1" / "summary.json").exists()
    assert "the loss became" in (tmp_path / "1" / "error.log").read_text()
    alone = run(classifier(tmp_path / "alone", 1e-3), dataset)
    np.testing.assert_allclose(losses(first), losses(alone), rtol=1e-4)


@pytest.mark.slow
def test_a_member_that_is_pruned_is_out(dataset, tmp_path):
    def evaluated(step, metrics):
        if len(seen) == 1:
            raise Pruned("enough")
        seen.append(step)

    seen = []
    members = [classifier(tmp_path / str(i), 1e-3, i) for i in range(2)]
    programs = Programs()
    parts = [part(programs), part(programs, evaluated)]
    first, second = run_together(list(zip(members, parts, strict=True)), dataset)
    assert first.summary["steps"] == 50
    assert str(second) == "enough"
    assert records(members[1])[-1]["step"] < 50


@pytest.mark.slow
def test_members_that_were_stopped_go_on_and_finished_ones_are_left_alone(dataset, tmp_path):
    done = run(classifier(tmp_path / "0", *SETTINGS[0]), dataset, part(Programs()))
    other = classifier(tmp_path / "1", *SETTINGS[1])

    def stop(step, metrics):
        if step >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(classifier(tmp_path / "1", *SETTINGS[1], steps=50), dataset, part(Programs(), stop))
    members = [classifier(tmp_path / "0", *SETTINGS[0]), other, classifier(tmp_path / "2", *SETTINGS[2])]
    results = together(members, dataset)
    assert results[0].summary["params_sha256"] == done.summary["params_sha256"]
    assert [member.summary["steps"] for member in results] == [50, 50, 50]


@pytest.mark.slow
def test_a_member_that_stops_early_keeps_the_state_in_which_it_stopped(dataset, tmp_path):
    how = {"steps": 80, "early_stopping": 1, "select": "last", "eval_every": 0.5}
    rates = (1e-4, 5e-2)
    members = [classifier(tmp_path / f"member{i}", rate, **how) for i, rate in enumerate(rates)]
    first, second = together(members, dataset)
    assert second.summary["steps"] < first.summary["steps"]
    alone = run(classifier(tmp_path / "alone", rates[1], **how), dataset, part(Programs()))
    assert second.summary["steps"] == alone.summary["steps"]
    for mine, solo in zip(*(jax.tree.leaves(one.weights) for one in (second, alone)), strict=True):
        np.testing.assert_allclose(mine, solo, rtol=1e-3, atol=1e-5)
    saved = [sorted(path.name for path in (one.run_dir / "checkpoints").iterdir()) for one in (second, alone)]
    assert saved[0] == saved[1]
    before = records(second)
    (second.run_dir / "summary.json").unlink()
    again = together([classifier(tmp_path / f"member{i}", rate, **how) for i, rate in enumerate(rates)], dataset)
    assert records(again[1]) == before


@pytest.mark.slow
def test_infinite_logits_are_no_success(dataset, tmp_path):
    members = [classifier(tmp_path / str(i), rate, steps=1) for i, rate in enumerate((1e-3, 1e38))]
    together(members, dataset)
    kept = [r["val/accuracy"] for r in records(members[1]) if r.get("val/loss") == "NaN"]
    assert kept
    assert max(kept) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("how", ["alone", "together"])
def test_a_signal_while_mlflow_gets_the_last_of_it_stops_a_sweep(how, dataset, tmp_path, monkeypatch):
    finish = Tracker.finish

    def finishing(self, *args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(self, *args, **options)

    monkeypatch.setattr(Tracker, "finish", finishing)
    one = classifier(tmp_path / "0", 1e-3, steps=2)
    train = {"alone": lambda: run(one, dataset, part(Programs())), "together": lambda: together([one], dataset)}
    with pytest.raises(Interrupted):
        train[how]()
    assert (tmp_path / "0" / "summary.json").exists()


class Sometimes(PTClassifier):
    """NaN in a batch that begins with two certain labels, above a learning rate."""

    def loss(self, model, batch, key):
        loss, metrics = super().loss(model, batch, key)
        first = jnp.argmax(batch.label[:2], axis=-1)
        bad = (self.config.optimizer.learning_rate > 2e-3) & (first[0] == 3) & (first[1] % 2 == 1)
        return jnp.where(bad, jnp.nan, loss), metrics


@pytest.mark.slow
def test_a_member_that_rolls_back_does_what_it_does_alone(dataset, tmp_path):
    def one(name, rate):
        train = {"steps": 60, "log_every": 1, "batch_size": 32, "on_nonfinite": "rollback", "nonfinite_limit": 50}
        return Sometimes(
            run_dir=tmp_path / name, model={"name": "mlp_tiny"}, train=train, optimizer={"learning_rate": rate},
            checkpoint={"every_steps": 5}, parallel={"devices": 1}, tracking={"enabled": False}, quiet=True,
            augment={"mixup": 0.0},
        )  # fmt: skip

    first, second = together([one("0", 1e-3), one("1", 3e-3)], dataset)
    alone = run(one("alone", 3e-3), dataset, part(Programs()))
    assert "rollbacks" not in first.summary
    assert second.summary["rollbacks"] == alone.summary["rollbacks"] > 0
    assert second.summary["steps"] == first.summary["steps"] == 60
    np.testing.assert_allclose(losses(second), losses(alone), rtol=1e-3)


@pytest.mark.slow
def test_a_signal_cuts_the_evaluation_of_runs_side_by_side_off(dataset, tmp_path, monkeypatch):
    def asked(self):
        evaluations.append(1)
        if len(evaluations) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return cut_off(self)

    evaluations, cut_off = [], Stepwise.cut_off
    monkeypatch.setattr(Stepwise, "cut_off", asked)
    members = [classifier(tmp_path / str(i), 1e-3, i) for i in range(2)]
    with pytest.raises(Interrupted):
        together(members, dataset)
    monkeypatch.undo()
    results = together([classifier(tmp_path / str(i), 1e-3, i) for i in range(2)], dataset)
    whole = together([classifier(tmp_path / f"whole{i}", 1e-3, i) for i in range(2)], dataset)
    for mine, theirs in zip(results, whole, strict=True):
        assert mine.summary["params_sha256"] == theirs.summary["params_sha256"]
