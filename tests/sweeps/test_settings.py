"""How axes combine, and what tells settings apart."""

import itertools

import numpy as np
import pytest

from jaxtrain.config import Config
from jaxtrain.sweeps.config import Repeat, SweepConfig
from jaxtrain.sweeps.settings import axes_of, settings_of

RATES, SIZES = [1e-3, 3e-3], [16, 32, 64]
AXES = {"optimizer.learning_rate": RATES, "train.batch_size": SIZES}


def settings(axes=AXES, base=None, **options):
    base = base or Config(optimizer={"learning_rate": 1e-3})
    sweep = SweepConfig(
        name="s", base=base, axes={k: tuple(v) if isinstance(v, list) else v for k, v in axes.items()}, **options
    )
    return settings_of(sweep, axes_of(sweep))


def values(found):
    return [tuple(one.options.values()) for one in found]


def test_a_grid_has_every_combination_once():
    found = settings()
    assert sorted(values(found)) == sorted(itertools.product(RATES, SIZES))
    assert len({one.digest for one in found}) == 6
    assert all(one.config.train.batch_size == one.options["train.batch_size"] for one in found)


def test_one_at_a_time_changes_the_base_in_one_place():
    found = values(settings(combine="one_at_a_time"))
    assert found[0] == (1e-3, 128)
    assert sorted(found[1:]) == [(1e-3, 16), (1e-3, 32), (1e-3, 64), (3e-3, 128)]


def test_zip_goes_along_all_axes():
    axes = {"optimizer.learning_rate": [1e-3, 3e-3, 1e-2], "train.batch_size": SIZES}
    assert values(settings(axes, combine="zip")) == [(1e-3, 16), (3e-3, 32), (1e-2, 64)]


def test_random_is_the_same_again_and_inside_its_range():
    axes = {
        "optimizer.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "train.batch_size": {"low": 8, "high": 64},
    }
    drawn = [values(settings(axes, combine="random", budget={"trials": 200}, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    rates = np.log10([row[0] for row in drawn[0]])
    assert -4 <= rates.min() < rates.max() <= -1
    assert abs(np.median(rates) + 2.5) < 0.4  # even on a logarithmic scale
    assert all(isinstance(row[1], int) and 8 <= row[1] <= 64 for row in drawn[0])


def test_ranges_with_steps_have_both_ends():
    axes = {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True, "steps": 3}}
    assert sorted(values(settings(axes))) == [(pytest.approx(1e-4),), (pytest.approx(1e-3),), (pytest.approx(1e-2),)]


def test_options_that_vary_together():
    axes = {"technique, model.weights": [["fe", "package:efficientnet_lite0"], ["pt", None]], "data.shots": [5, 20]}
    assert values(settings(axes)) == [
        ("fe", "package:efficientnet_lite0", 5),
        ("fe", "package:efficientnet_lite0", 20),
        ("pt", None, 5),
        ("pt", None, 20),
    ]


def test_digests_follow_what_is_learned_alone():
    first, second = (
        settings(),
        settings(base=Config(optimizer={"learning_rate": 1e-3}, seed=3, quiet=True, tracking={"enabled": False})),
    )
    assert [one.digest for one in first] == [one.digest for one in second]
    other = settings(base=Config(optimizer={"learning_rate": 1e-3}, train={"epochs": 2}))
    assert not {one.digest for one in first} & {one.digest for one in other}


def test_names_of_runs_are_names_of_folders():
    names = {one.run_name(Repeat(seed)) for one in settings() for seed in (0, 1)}
    assert len(names) == 12
    assert all(name.replace("-", "").replace("_", "").replace(".", "").isalnum() and len(name) < 90 for name in names)
