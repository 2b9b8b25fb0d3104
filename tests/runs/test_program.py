"""Options as arguments of a shared program: the same training as with constants, and compiled once."""

import jax
import numpy as np
import pytest

from jaxtrain import PTClassifier
from jaxtrain.data.sources import load_dataset
from jaxtrain.runs.learning import Part
from jaxtrain.runs.program import Programs, program_key, values_of, with_values
from jaxtrain.runs.run import run
from jaxtrain.runs.setup import prepare
from tests.marks import mostly_slow

OPTIONS = {
    "model": {"name": "mlp_tiny", "drop_rate": 0.2},
    "train": {"steps": 30, "batch_size": 64, "label_smoothing": 0.1, "ema_decay": 0.9, "log_every": 1},
    "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1},
    "augment": {"mixup": 0.3, "cutmix": 0.5},
    "tracking": {"enabled": False},
    "quiet": True,
}


def classifier(**changes):
    options = {**OPTIONS, **changes}
    return PTClassifier(**options)


def part(programs):
    return Part(programs, lambda final: {}, lambda step, metrics: None)


def losses(one):
    from jaxtrain.tracking import Journal

    records = Journal(one.run_dir / "metrics.jsonl").records()
    return np.array([record["train/loss"] for record in records if "train/loss" in record])


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(classifier().data_config)


OPTIMIZERS = [
    {"name": "adamw", "learning_rate": 3e-3},
    pytest.param({"name": "sgd", "learning_rate": 0.1}, marks=pytest.mark.slow),
    pytest.param({"name": "lamb", "learning_rate": 3e-3, "clip_norm": 1.0}, marks=pytest.mark.slow),
    pytest.param({"name": "lion", "learning_rate": 3e-4}, marks=pytest.mark.slow),
    pytest.param({"name": "muon", "learning_rate": 3e-3}, marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_values_as_arguments_train_as_constants_do(optimizer, dataset, tmp_path):
    shared = run(classifier(run_dir=tmp_path / "shared", seed=5, optimizer=optimizer), dataset, part(Programs()))
    alone = run(classifier(run_dir=tmp_path / "alone", seed=5, optimizer=optimizer), dataset)
    np.testing.assert_allclose(losses(shared), losses(alone), rtol=1e-4)
    assert shared.summary["val_accuracy"] == alone.summary["val_accuracy"]
    assert shared.summary["test_accuracy"] is None
    assert alone.summary["test_accuracy"] is not None


@pytest.mark.parametrize("schedule", mostly_slow(["cosine", "linear", "wsd", "one_cycle", "constant"], {"cosine"}))
def test_every_schedule_takes_a_traced_peak(schedule, dataset):
    given = classifier(schedule={"name": schedule})
    config = given.resolve(given.config, dataset)
    _, setup = prepare(given.bind(config), dataset, Programs())
    steps = np.arange(0, 30, 3)

    def rates(values):
        return jax.vmap(setup.program.spec(values).schedule)(steps)

    np.testing.assert_allclose(jax.jit(rates)(values_of(config)), rates({}), rtol=1e-6)


@pytest.mark.slow
def test_runs_that_differ_in_values_compile_once(dataset, tmp_path):
    programs, kept = Programs(), []
    for number, (rate, seed) in enumerate([(1e-3, 0), (3e-3, 1), (1e-2, 2)]):
        one = classifier(run_dir=tmp_path / str(number), seed=seed, optimizer={"learning_rate": rate})
        kept.append(run(one, dataset, part(programs)).summary["params_sha256"])
    (program,) = programs._kept.values()
    assert program.compiled[1]._cache_size() == 1
    assert program.initial_state._cache_size() == 1
    assert len(set(kept)) == 3
    again = run(
        classifier(run_dir=tmp_path / "again", seed=0, optimizer={"learning_rate": 1e-3}), dataset, part(programs)
    )
    assert again.summary["params_sha256"] == kept[0]


@pytest.mark.slow
def test_drop_rates_of_every_block_are_arguments(dataset, tmp_path):
    options = {"train": {"steps": 4, "batch_size": 16, "log_every": 1}, "augment": {"policy": "none"}}
    programs = Programs()
    for rate in (0.3, 0.6):
        model = {"name": "vit_test", "drop_path_rate": rate, "drop_rate": 0.1}
        shared = run(classifier(run_dir=tmp_path / f"shared{rate}", model=model, **options), dataset, part(programs))
        alone = run(classifier(run_dir=tmp_path / f"alone{rate}", model=model, **options), dataset)
        np.testing.assert_allclose(losses(shared), losses(alone), rtol=1e-4)
    assert len(programs._kept) == 1


def test_what_changes_the_program_has_a_key_of_its_own(dataset):
    def key(**changes):
        one = classifier(**changes)
        return program_key(one, one.resolve(one.config, dataset))

    same = [key(), key(seed=1), key(optimizer={"learning_rate": 1.0}), key(augment={"mixup": 0.1, "cutmix": 1.0})]
    assert len(set(same)) == 1
    others = [key(model={"name": "linear"}), key(augment={"mixup": 0.0, "cutmix": 1.0}), key(train={"steps": 31})]
    assert len({*same, *others}) == 4


def test_values_go_back_where_they_came_from(dataset):
    one = classifier()
    config = one.resolve(one.config, dataset)
    values = {path: value.item() for path, value in values_of(config).items()}
    assert set(values) == {
        "seed", "optimizer.learning_rate", "optimizer.weight_decay", "train.label_smoothing", "train.ema_decay",
        "augment.mixup", "augment.cutmix", "model.drop_rate",
    }  # fmt: skip
    changed = with_values(config, {**values, "seed": 7, "train.ema_decay": 0.5})
    assert (changed.seed, changed.train.ema_decay) == (7, 0.5)
