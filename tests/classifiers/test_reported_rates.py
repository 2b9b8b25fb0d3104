"""What is reported of an optimizer is what ran, also where it is not the one of the options."""

import json
import re

import mlflow
import numpy as np
import optax
import pytest

from jaxtrain import PTClassifier, UserError
from tests.classifiers.own_networks import focal


def constant(schedule):
    return optax.sgd(0.123)


def following(schedule):
    return optax.chain(optax.clip(1.0), optax.sgd(schedule))


def kept(schedule):
    return optax.inject_hyperparams(optax.adam)(learning_rate=optax.linear_schedule(0.5, 0.0, 10))


class Overriding(PTClassifier):
    def make_optimizer(self, schedule):
        return optax.sgd(0.123)


WAYS = {
    "options": ({}, [0.1, 0.1, 0.1]),
    "constant": ({"optimizer": constant}, []),
    "following": ({"optimizer": following}, [1e-3, 1e-3, 1e-3]),
    "kept": ({"optimizer": kept}, [0.5, 0.45, 0.4]),
    "overriding": ({"kind": Overriding}, []),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_learning_rate_is_the_optimizers(way, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options, rates = WAYS[way]
    images, labels = np.random.default_rng(0).integers(0, 256, (60, 4, 4), np.uint8), np.arange(60) % 2
    options = {"optimizer": {"name": "sgd"} if way == "options" else None, **options}
    kind = options.pop("kind", PTClassifier)
    train = {"steps": 3, "log_every": 1, "batch_size": 16}
    model = kind(model={"name": "linear"}, train=train, schedule={"name": "constant"}, run_dir="run", **options)
    model.fit(images, labels)
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    found = [record["learning_rate"] for record in records if "learning_rate" in record]
    assert found == pytest.approx(rates)
    shown = re.search(r"optimizer +(\S+)", capsys.readouterr().out)[1]
    assert shown.endswith({"options": "sgd,", "overriding": ":Overriding.make_optimizer"}.get(way, f":{way}"))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("PT").experiment_id])
    assert ("optimizer.name" in run.data.params) == (way == "options")


@pytest.mark.slow
def test_a_run_goes_on_only_with_the_class_that_began_it(tmp_path):
    class Focal(PTClassifier):
        def loss(self, model, batch, key):
            return focal(model(batch.image, train=True, key=key), batch.label).mean(), {}

    images, labels = np.zeros((40, 4, 4), np.uint8), np.arange(40) % 2
    options = {"run_dir": tmp_path / "run", "model": {"name": "linear"}, "train": {"steps": 2}, "quiet": True}
    assert Focal(**options, tracking={"enabled": False}).config.own.overrides == ("loss",)
    PTClassifier(**options, tracking={"enabled": False}).fit(images, labels)
    with pytest.raises(UserError, match="Focal"):
        Focal(**options, tracking={"enabled": False}).fit(images, labels)
