"""Networks, losses, optimizers and metrics of a stranger's own, through every technique."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

import jaxtrain
from jaxtrain import FEClassifier, FTClassifier, PTClassifier, UserError
from jaxtrain.data.arrays import from_arrays
from jaxtrain.runs.group import run_together
from jaxtrain.runs.learning import Part
from jaxtrain.runs.program import Programs
from jaxtrain.runs.run import run
from tests.classifiers.own_networks import NETWORKS, Documented, Inverted, Linen, balanced, focal, momentum

OTHER_WAYS = [(Linen, "pmap"), (Documented, "pmap"), (Linen, "jit")]
ROOT = Path(__file__).parents[2]
QUIET = {"quiet": True, "tracking": {"enabled": False}}


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:600], bunch.target[:600]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(network, digits, kind=PTClassifier, epochs=12, **options):
    train = {"batch_size": 64, **options.pop("train", {})}
    train |= {} if "steps" in train else {"epochs": epochs}
    model = kind(network=network, train=train, augment={"policy": "none"}, **QUIET, **options)
    return model.fit(*digits, test=digits)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_way_to_write_a_network_learns_saves_loads_and_goes_on_to_fe_and_ft(name, digits, tmp_path):
    images = digits[0]
    model = trained(NETWORKS[name], digits, epochs=30, run_dir=tmp_path / "pt", optimizer={"learning_rate": 1e-2})
    assert model.summary["test_accuracy"] > 0.8
    again = jaxtrain.load(tmp_path / "pt")
    np.testing.assert_array_equal(again.predict_logits(images[:50]), model.predict_logits(images[:50]))
    assert again.embed(images[:5]).ndim == 2
    fe = FEClassifier(model={"weights": str(tmp_path / "pt")}, run_dir=tmp_path / "fe", **QUIET)
    assert fe.fit(*digits, test=digits).summary["test_accuracy"] > 0.8
    weights = {"weights": str(tmp_path / "pt")}
    for strategy in ("head", "norm_bias", "full"):
        options = {"model": weights, "finetune": {"strategy": strategy}, "train": {"steps": 3}}
        tuned = FTClassifier(run_dir=tmp_path / strategy, **options, **QUIET).fit(*digits, test=digits)
        assert tuned.summary["test_accuracy"] > 0.8
        moved = changed(model.fitted.weights, tuned.fitted.weights)
        assert moved
        if strategy == "head":
            assert {path.rpartition("/")[0] for path in moved} == {"/".join(fe_head(name))}


def fe_head(name):
    return {
        "documented": ["out"], "keyed": ["final"], "deterministic": ["parts", "1"], "linen": ["Dense_0"],
        "function": ["layers", "3"],
    }[name]  # fmt: skip


def changed(before, after):
    """Paths of the arrays that two models have different values of."""

    def flat(weights):
        joined = {}
        for part in ("params", "frozen", "model_state"):
            for path, leaf in jax.tree_util.tree_leaves_with_path(weights[part]):
                joined[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(leaf)
        return joined

    old, new = flat(before), flat(after)
    assert old.keys() == new.keys()
    return {path for path in old if not np.array_equal(old[path], new[path])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "strategy"),
    [(Documented, "jit"), *OTHER_WAYS],
)
def test_a_resumed_run_ends_in_the_same_bits(network, strategy, digits, tmp_path):
    how = {"train": {"steps": 12}, "parallel": {"strategy": strategy}, "checkpoint": {"every_steps": 5}}
    whole = trained(network, digits, run_dir=tmp_path / "whole", **how)

    class StopError(Exception):
        pass

    def stop(logits, labels):
        seen.append(1)
        if len(seen) == 2:
            raise StopError
        return 0.0

    seen = []
    how["train"] = {"steps": 12, "eval_every": 0.5}
    with pytest.raises(jaxtrain.RunError):
        trained(network, digits, run_dir=tmp_path / "part", metrics={"val/stop": stop}, **how)
    again = trained(network, digits, run_dir=tmp_path / "part", **how)
    assert again.summary["params_sha256"] == whole.summary["params_sha256"]


@pytest.mark.slow
def test_blocks_are_those_of_the_networks_own_list(digits, tmp_path):
    trained(NETWORKS["keyed"], digits, run_dir=tmp_path / "pt", train={"steps": 2})
    before = jaxtrain.load(tmp_path / "pt").fitted.weights
    model = FTClassifier(
        model={"weights": str(tmp_path / "pt")}, finetune={"strategy": "blocks"}, train={"steps": 2}, **QUIET
    ).fit(*digits)
    moved = {path.rpartition("/")[0] for path in changed(before, model.fitted.weights)}
    assert moved == {"layers/2", "final"}


@pytest.mark.slow
def test_a_probed_head_takes_the_place_of_the_one_that_came_along(digits, tmp_path):
    trained(NETWORKS["function"], digits, run_dir=tmp_path / "pt", train={"steps": 60})
    options = {"finetune": {"linear_probe": True}, "train": {"steps": 1}, "optimizer": {"learning_rate": 1e-7}}
    model = FTClassifier(model={"weights": str(tmp_path / "pt")}, run_dir=tmp_path / "ft", **options, **QUIET)
    probed = model.fit(*digits).predict_proba(digits[0])
    fe = FEClassifier(model={"weights": str(tmp_path / "pt")}, run_dir=tmp_path / "fe", **QUIET).fit(*digits)
    assert abs(model.score(*digits) - fe.score(*digits)) < 0.03
    came_along = jaxtrain.load(tmp_path / "pt").predict_proba(digits[0])
    assert np.abs(probed - came_along).max() > 0.05


def test_loss_optimizer_and_metrics(digits, tmp_path):
    model = trained(
        Documented,
        digits,
        loss=focal,
        optimizer=lambda schedule: momentum(0.1),
        metrics={"val/balanced": balanced},
        train={"monitor": "val/balanced", "select": "best", "accumulate": 2, "ema_decay": 0.9},
        run_dir=tmp_path / "run",
    )
    records = [json.loads(line) for line in (model.run_dir / "metrics.jsonl").read_text().splitlines()]
    values = {record["step"]: record["val/balanced"] for record in records if "val/balanced" in record}
    assert len(values) == 12
    assert values[model.summary["best_step"]] == max(values.values())
    assert model.fitted.config.own.loss == "tests.classifiers.own_networks:focal"
    assert (
        model.fitted.config.own.optimizer
        == "tests.classifiers.test_own_parts:test_loss_optimizer_and_metrics.<locals>.<lambda>"
    )


class Returns(PTClassifier):
    """With a loss that returns what it is told to."""

    def loss(self, model, batch, key):
        value, metrics = super().loss(model, batch, key)
        return {"alone": value, "in-full": batch.label - model(batch.image), "listed": [value, metrics]}[
            self.config.name
        ]


@pytest.mark.parametrize("form", ["alone", "in-full", "listed"])
def test_a_loss_of_another_form_is_explained(form, digits):
    with pytest.raises(UserError, match=r"Returns\.loss must return \(loss, metrics\)"):
        Returns(name=form, model={"name": "linear"}, train={"steps": 1}, **QUIET).fit(*digits)


@pytest.mark.parametrize("result", [lambda logits, targets: logits, lambda logits, targets: (logits.sum(), {})])
def test_a_loss_function_of_another_form_is_explained(result, digits):
    with pytest.raises(UserError, match=r"loss: must return one number, or one for each of the 128 images"):
        PTClassifier(loss=result, model={"name": "linear"}, train={"steps": 1}, **QUIET).fit(*digits)


def test_a_metric_that_nobody_measures_is_refused_before_the_run(digits, tmp_path):
    with pytest.raises(UserError, match="val/balanced"):
        trained(
            Documented, digits, metrics={"val/balanced": balanced}, train={"monitor": "val/balance"},
            run_dir=tmp_path / "run",
        )  # fmt: skip


@pytest.mark.slow
def test_a_class_of_ones_own_is_loaded_by_its_import_path(digits, tmp_path):
    model = trained(None, digits, kind=Inverted, model={"name": "mlp_tiny"}, run_dir=tmp_path / "run")
    again = jaxtrain.load(tmp_path / "run")
    assert type(again) is Inverted
    np.testing.assert_array_equal(again.predict_logits(digits[0][:50]), model.predict_logits(digits[0][:50]))
    assert type(PTClassifier.load(tmp_path / "run")) is Inverted
    with pytest.raises(UserError, match="own_networks:Inverted"):
        PTClassifier(run_dir=tmp_path / "run", model={"name": "mlp_tiny"}, **QUIET).fit(*digits)


SCRIPT = """
import sys, numpy as np
from flax import nnx
import jaxtrain
from jaxtrain import PTClassifier

class Net(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.out = nnx.Linear(64, num_classes, rngs=rngs)
    def __call__(self, x):
        return self.out(x.reshape(len(x), -1))

images = np.zeros((40, 8, 8), np.uint8)
quiet = {"quiet": True, "tracking": {"enabled": False}}
PTClassifier(network=Net, run_dir="run", train={"steps": 2}, **quiet).fit(images, np.arange(40) % 4)
print(type(jaxtrain.load("run").network).__name__ if False else jaxtrain.load("run").predict(images).shape)
"""


@pytest.mark.slow
def test_a_network_of_a_script_is_found_in_it_and_named_elsewhere(tmp_path):
    (tmp_path / "mine.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(40,)" in done.stdout
    with pytest.raises(UserError, match="__main__:Net") as refusal:
        jaxtrain.load(tmp_path / "run")
    assert "network=Net" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("network", [np.zeros(3), lambda: None, lambda num_classes, rngs: 3])
def test_what_is_no_network_is_refused_in_one_line(network, digits, tmp_path):
    with pytest.raises(UserError, match="network") as refusal:
        trained(network, digits, run_dir=tmp_path / "run")
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_strategies_agree_on_two_devices(tmp_path):
    script = [sys.executable, "-m", "tests.classifiers.own_on_devices", str(tmp_path)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_runs_of_a_network_of_ones_own_train_side_by_side(digits, tmp_path):
    def one(name, rate):
        how = {"train": {"steps": 8, "log_every": 1, "batch_size": 32}, "optimizer": {"learning_rate": rate}}
        return PTClassifier(network=Documented, run_dir=tmp_path / name, parallel={"devices": 1}, **how, **QUIET)

    dataset = from_arrays(*digits)
    part = Part(Programs(), lambda final: {}, lambda step, metrics: None)
    members = run_together([(one("0", 1e-3), part), (one("1", 3e-3), part)], dataset)
    alone = run(one("alone", 3e-3), dataset, Part(Programs(), lambda final: {}, lambda step, metrics: None))

    def losses(fitted):
        lines = (fitted.run_dir / "metrics.jsonl").read_text().splitlines()
        return [record["train/loss"] for record in map(json.loads, lines) if "train/loss" in record]

    np.testing.assert_allclose(losses(members[1]), losses(alone), rtol=1e-3)
    assert len(losses(alone)) == 8
