"""What came out of a sweep, as data: runs, settings, main effects, interactions, importances."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.sweeps.config import Repeat, SweepConfig
from jaxtrain.sweeps.settings import Axis, Setting, shown

Floats = NDArray[np.float64]
_BINS = 4
"""Parts into which the values of a range are split for its main effect."""
_ROUNDS = 64


@dataclass(frozen=True)
class Outcome:
    """One run."""

    setting: Setting
    repeat: Repeat
    name: str
    """Of its folder."""
    value: float | None
    """The objective; None where the run has none."""
    how: str
    """done, pruned at ..., diverged: ..., or the error."""
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and folds."""

    mean: float
    low: float
    """End of the 95% interval of the mean (Student's t over runs); NaN for one run."""
    high: float
    deviation: float
    count: int


@dataclass(frozen=True)
class Ranked:
    """A setting with all its runs."""

    setting: Setting
    values: Mapping[Repeat, float]
    """By seed and fold."""
    estimate: Estimate
    against: Estimate | None
    """The difference to the baseline, run by run; None for the baseline itself."""
    unfinished: int
    """Runs that were pruned, diverged or failed."""
    cost: tuple[float, float]
    """Parameters, then the median of the seconds of training: of equally good settings the cheapest comes first."""


@dataclass(frozen=True)
class Effect:
    """What one value of an axis does: the mean over everything else, less the mean over all (or less the baseline)."""

    axis: str
    value: str
    estimate: Estimate
    mean: float
    """Of the objective itself."""


@dataclass(frozen=True)
class Interaction:
    """What two values do together beyond the sum of what each does alone."""

    axes: tuple[str, str]
    values: tuple[str, str]
    estimate: Estimate


@dataclass(frozen=True)
class Results:
    """A sweep's outcomes and what follows from them."""

    sweep: SweepConfig
    axes: Sequence[Axis]
    outcomes: Sequence[Outcome]
    ranked: Sequence[Ranked]
    """Best first; settings none of whose runs ended come last."""
    baseline: str
    """Digest of the setting that the others are compared with."""
    effects: Sequence[Effect]
    interactions: Sequence[Interaction]
    """The largest first."""
    importances: Mapping[str, float]
    """Share of each axis in the spread of the objective."""

    @property
    def best(self) -> Ranked | None:
        """The chosen setting: the best mean among those with the most finished runs; None where no run ended."""
        return self.ranked[0] if self.ranked and self.ranked[0].values else None

    @property
    def tied(self) -> list[Ranked]:
        """Settings that are as good as the best one and not as cheap."""
        best = self.best
        if best is None:
            return []
        return [one for one in self.ranked[1:] if one.values and _goodness(one) == _goodness(best)]

    @property
    def seedless(self) -> list[Ranked]:
        """Settings of which all seeds came to one result."""
        return [one for one in self.ranked if len(one.values) > 1 and one.estimate.count == 1]


def results_of(sweep: SweepConfig, axes: Sequence[Axis], outcomes: Sequence[Outcome], baseline: str) -> Results:
    """Everything that follows from the outcomes."""
    finished = [one for one in outcomes if one.value is not None]
    ranked = _ranked(sweep, outcomes, baseline)
    one_factor = sweep.combine == "one_at_a_time"
    effects = _against_baseline(axes, ranked, baseline) if one_factor else _main_effects(axes, finished)
    interactions = [] if one_factor else _interactions(axes, finished)
    return Results(sweep, axes, outcomes, ranked, baseline, effects, interactions, importances(sweep, axes, finished))


def estimate(values: Sequence[float], ends: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """Mean of values that are independent, with Student's interval, cut at the `ends` of what can be."""
    from scipy.special import stdtrit

    array = np.asarray(values, np.float64)
    mean, count = float(array.mean()), len(array)
    if count < 2:
        return Estimate(mean, math.nan, math.nan, math.nan, count)
    deviation = float(array.std(ddof=1))
    half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    return Estimate(mean, max(mean - half, ends[0]), min(mean + half, ends[1]), deviation, count)


def category(axis: Axis, options: Mapping[str, Any]) -> str:
    """The value that a setting has on an axis, in words."""
    row = [options[path] for path in axis.paths]
    return shown(row[0] if len(row) == 1 else row)


def importances(sweep: SweepConfig, axes: Sequence[Axis], finished: Sequence[Outcome]) -> dict[str, float]:
    """Share of each axis in the variance of the objective, by Optuna's fANOVA (Hutter et al. 2014); {} for too few.

    The evaluator sees one trial for each run. Of axes that never vary there is nothing to say: their share is 0.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    varying = [axis for axis in axes if len({category(axis, one.setting.options) for one in finished}) > 1]
    if not varying or len({one.value for one in finished}) < 2:
        return {}
    distributions: dict[str, Any] = {}
    columns: dict[str, list[Any]] = {}
    for axis in varying:
        values = [one.setting.options[axis.paths[0]] for one in finished]
        if axis.range is not None:
            columns[axis.name] = [float(value) for value in values]
            distributions[axis.name] = FloatDistribution(
                min(columns[axis.name]), max(columns[axis.name]), log=axis.range.log
            )
        else:
            columns[axis.name] = [category(axis, one.setting.options) for one in finished]
            distributions[axis.name] = CategoricalDistribution(sorted(set(columns[axis.name])))
    study = optuna.create_study(direction="maximize" if sweep.higher_is_better else "minimize")
    for number, one in enumerate(finished):
        params = {name: column[number] for name, column in columns.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=one.value))
    # Trees with a leaf for each of 500 runs take minutes, and see noise.
    depth = 64 if len(finished) <= 100 else 6
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_ROUNDS, max_depth=depth, seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {axis.name: float(found.get(axis.name, 0.0)) for axis in axes}


def _ranked(sweep: SweepConfig, outcomes: Sequence[Outcome], baseline: str) -> list[Ranked]:
    by_setting: dict[str, dict[Repeat, Outcome]] = {}
    for one in outcomes:
        by_setting.setdefault(one.setting.digest, {})[one.repeat] = one
    base = _finished(by_setting.get(baseline, {}))
    sign, most = (-1.0, 1.0) if sweep.higher_is_better else (1.0, math.inf)
    found = []
    for digest, runs in by_setting.items():
        done = _finished(runs)
        # Seeds that came to the same parameters, here and in the baseline, are one result.
        values = {_result(one): one.value for one in done.values()}
        gaps = {
            (_result(one), _result(base[repeat])): one.value - base[repeat].value  # type: ignore[operator]
            for repeat, one in done.items()
            if repeat in base
        }
        found.append(
            Ranked(
                setting=next(iter(runs.values())).setting,
                values={repeat: float(one.value) for repeat, one in done.items()},  # type: ignore[arg-type]
                estimate=estimate([*values.values()], (0.0, most)) if values else NOTHING,  # type: ignore[list-item]
                against=estimate([*gaps.values()], (-most, most)) if gaps and digest != baseline else None,
                unfinished=len(runs) - len(done),
                cost=_cost([*done.values()]),
            )
        )
    return sorted(found, key=lambda one: (-len(one.values), sign * _goodness(one), one.cost))


NOTHING = Estimate(math.nan, math.nan, math.nan, math.nan, 0)


def _finished(runs: Mapping[Repeat, Outcome]) -> dict[Repeat, Outcome]:
    return {seed: one for seed, one in runs.items() if one.value is not None}


def _result(one: Outcome) -> str:
    """What is the same for runs that came to the same parameters."""
    return str(one.summary.get("params_sha256") or one.name)


def _goodness(one: Ranked) -> float:
    """The mean, apart from the rounding of its sum; the worst for none."""
    return round(one.estimate.mean, 12) if one.values else math.nan


def _cost(done: Sequence[Outcome]) -> tuple[float, float]:
    params, seconds = ([float(one.summary.get(name, 0)) for one in done] for name in ("params", "wall_seconds"))
    return (float(np.median(params)), float(np.median(seconds))) if done else (math.inf, math.inf)


def _main_effects(axes: Sequence[Axis], finished: Sequence[Outcome]) -> list[Effect]:
    """Within each seed and fold: the mean at a value, less the mean of all; then over these."""
    effects, numbers = [], _numbers(finished)
    for axis in axes:
        groups = np.asarray(_groups(axis, finished))
        for word in in_order(axis, groups.tolist()):
            gaps, means = [], []
            for members in _by_repeat(finished):
                there = numbers[members][groups[members] == word]
                if len(there):
                    means.append(float(there.mean()))
                    gaps.append(means[-1] - float(numbers[members].mean()))
            effects.append(Effect(axis.name, word, estimate(gaps), float(np.mean(means))))
    return effects


def _against_baseline(axes: Sequence[Axis], ranked: Sequence[Ranked], baseline: str) -> list[Effect]:
    """Each value alone in the baseline's place: its difference, run by run."""
    base = next((one for one in ranked if one.setting.digest == baseline), None)
    if base is None:
        return []
    effects = []
    for axis in axes:
        usual = category(axis, base.setting.options)
        changed = {category(axis, one.setting.options): one for one in ranked if one.against is not None}
        for word in in_order(axis, [word for word in changed if word != usual]):
            one = changed[word]
            assert one.against is not None
            effects.append(Effect(axis.name, word, one.against, one.estimate.mean))
    return effects


def _interactions(axes: Sequence[Axis], finished: Sequence[Outcome]) -> list[Interaction]:
    """Of each pair of axes whose every combination was run: the mean of a cell, less row and column, plus the mean."""
    found, numbers = [], _numbers(finished)
    for first, second in itertools.combinations(axes, 2):
        rows, columns = _groups(first, finished), _groups(second, finished)
        names = in_order(first, rows), in_order(second, columns)
        if min(map(len, names)) < 2:
            continue
        tables = [
            _table(numbers[members], [rows[i] for i in members], [columns[i] for i in members], names)
            for members in _by_repeat(finished)
        ]
        whole = [table for table in tables if np.isfinite(table).all()]
        if not whole:
            continue
        rest = [t - t.mean(1, keepdims=True) - t.mean(0, keepdims=True) + t.mean() for t in whole]
        for i, j in itertools.product(range(len(names[0])), range(len(names[1]))):
            values = (names[0][i], names[1][j])
            found.append(Interaction((first.name, second.name), values, estimate([float(t[i, j]) for t in rest])))
    return sorted(found, key=lambda one: -abs(one.estimate.mean))


def _table(numbers: Floats, rows: Sequence[str], columns: Sequence[str], names: tuple[list[str], list[str]]) -> Floats:
    """Means by row and column, NaN where nothing was run."""
    table = np.full((len(names[0]), len(names[1])), np.nan)
    for i, row in enumerate(names[0]):
        for j, column in enumerate(names[1]):
            there = [value for value, *place in zip(numbers, rows, columns, strict=True) if place == [row, column]]
            if there:
                table[i, j] = np.mean(there)
    return table


def _groups(axis: Axis, finished: Sequence[Outcome]) -> list[str]:
    """The value of each run on an axis in words; values of a range that is drawn from, in a few parts."""
    if axis.values or axis.range is None:
        return [category(axis, one.setting.options) for one in finished]
    values = np.asarray([float(one.setting.options[axis.paths[0]]) for one in finished])
    scale = np.log if axis.range.log else np.asarray
    edges = np.linspace(scale(axis.range.low), scale(axis.range.high), _BINS + 1)
    places = np.clip(np.searchsorted(edges, scale(values), side="right") - 1, 0, _BINS - 1)
    ends = np.exp(edges) if axis.range.log else edges
    return [f"{ends[place]:.3g} to {ends[place + 1]:.3g}" for place in places]


def _by_repeat(finished: Sequence[Outcome]) -> list[NDArray[np.int64]]:
    """Places of the runs of each seed and fold; of those whose every run came to the same, those of the first."""
    found: dict[frozenset[tuple[str, str]], list[int]] = {}
    for repeat in sorted({one.repeat for one in finished}):
        places = [place for place, one in enumerate(finished) if one.repeat == repeat]
        found.setdefault(frozenset((finished[i].setting.digest, _result(finished[i])) for i in places), places)
    return [np.asarray(places) for places in found.values()]


def _numbers(finished: Sequence[Outcome]) -> Floats:
    """Their objectives."""
    return np.asarray([one.value for one in finished], np.float64)


def in_order(axis: Axis, words: Sequence[str]) -> list[str]:
    """The different words among these: in the order of the axis, else as they come."""
    order = [shown(row[0] if len(row) == 1 else row) for row in axis.values]
    found = list(dict.fromkeys(words))
    return sorted(found, key=lambda word: order.index(word) if word in order else len(order))
