"""From the file of a sweep to its settings: every combination checked, named and with a digest of its own."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from jaxtrain.config import FREE_ON_RESUME, TECHNIQUES, Config, acting
from jaxtrain.config_io import explain, nearest_option, option_paths
from jaxtrain.errors import UserError
from jaxtrain.files import run_name
from jaxtrain.sweeps.config import Range, Repeat, SweepConfig

_NAME_LENGTH = 60


@dataclass(frozen=True)
class Axis:
    """What varies: options that vary together, and their values."""

    paths: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    """One value for each path; empty for a range without steps."""
    range: Range | None
    whole: bool = False
    """Whether the range is one of integers."""

    @property
    def name(self) -> str:
        """As in the file."""
        return ", ".join(self.paths)


@dataclass(frozen=True)
class Setting:
    """One combination of values."""

    options: Mapping[str, Any]
    """Values by option path, as the config has them."""
    config: Config
    """The base with these options; its seed and its fold do not count."""

    @property
    def digest(self) -> str:
        """Of every option that decides what is learned, except the seed and the fold."""
        tree = self.config.without((*FREE_ON_RESUME, "seed", "data.fold"))
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """The values in words."""
        return ", ".join(f"{short(path)} {shown(value)}" for path, value in self.options.items()) or "the base"

    def run_name(self, repeat: Repeat) -> str:
        """Name of the folder and the MLflow run of one seed and fold."""
        words = run_name("-".join(f"{short(path)}-{shown(value)}" for path, value in self.options.items()) or "base")
        return f"{words[:_NAME_LENGTH].rstrip('-._')}-{self.digest[:6]}-{repeat.suffix}"


def short(path: str) -> str:
    """The last part of an option path."""
    return path.rpartition(".")[2]


def shown(value: Any) -> str:
    """A value for people."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "+".join(map(shown, value)) if isinstance(value, tuple | list) else str(value)


def axes_of(sweep: SweepConfig) -> list[Axis]:
    """The axes, every path and every value checked against the base. Raises UserError for a wrong one."""
    axes = [_axis(sweep, name, given) for name, given in sweep.axes.items()]
    paths = [path for axis in axes for path in axis.paths]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice:
        raise UserError(f"axes: {twice} is on two axes")
    return axes


def settings_of(sweep: SweepConfig, axes: Sequence[Axis]) -> list[Setting]:
    """All settings, the baseline first where it is one of them; for tpe the baseline alone, since the rest is proposed.

    Raises UserError for a combination that the config refuses, or that makes no sense.
    """
    baseline = setting(sweep, {path: sweep.base.get(path) for axis in axes for path in axis.paths}, checked=False)
    if sweep.combine == "tpe":
        _needs_trials(sweep)
        return [baseline]
    found = {one.digest: one for one in (setting(sweep, options) for options in _combined(sweep, axes, baseline))}
    limit = sweep.budget.trials
    if limit is not None and len(found) > limit:
        raise UserError(f"budget.trials: {limit}, but combine {sweep.combine} makes {len(found)} settings")
    return sorted(found.values(), key=lambda one: one.digest != baseline.digest)


def setting(sweep: SweepConfig, options: Mapping[str, Any], *, checked: bool = True) -> Setting:
    """The base with these options; where the technique varies, each takes what acts under it from the base.

    Raises UserError where the config refuses them together.
    """
    base = sweep.base
    first = {"seed": 0} if base.data.folds is None else {"seed": 0, "data.fold": 0}
    try:
        if checked and (technique := options.get("technique")) in TECHNIQUES:
            base = Config.model_validate({**acting(technique, base.model_dump()), "technique": technique})
        config = base.replace(**options, **first) if checked else base.replace(**first)
    except ValidationError as error:
        words = ", ".join(f"{path} {shown(value)}" for path, value in options.items())
        raise UserError(explain(error, f"setting {words}")) from None
    return Setting({path: config.get(path) for path in options}, config)


def _combined(sweep: SweepConfig, axes: Sequence[Axis], baseline: Setting) -> list[dict[str, Any]]:
    choices = [[dict(zip(axis.paths, values, strict=True)) for values in axis.values] for axis in axes]
    match sweep.combine:
        case "one_at_a_time":
            start = dict(baseline.options)
            return [start, *({**start, **change} for values in choices for change in values)]
        case "zip":
            lengths = {axis.name: len(axis.values) for axis in axes}
            if len(set(lengths.values())) > 1:
                words = ", ".join(f"{name} has {length}" for name, length in lengths.items())
                raise UserError(f"axes: combine zip needs as many values on each axis; {words}")
            return [_joined(row) for row in zip(*choices, strict=True)]
        case "random":
            generator = np.random.default_rng(sweep.seed)
            return [_joined([_drawn(axis, generator) for axis in axes]) for _ in range(_needs_trials(sweep))]
    return [_joined(row) for row in itertools.product(*choices)]


def _drawn(axis: Axis, generator: np.random.Generator) -> dict[str, Any]:
    if axis.values:
        return dict(zip(axis.paths, axis.values[generator.integers(len(axis.values))], strict=True))
    assert axis.range is not None
    low, high = axis.range.low, axis.range.high
    value = float(
        np.exp(generator.uniform(np.log(low), np.log(high))) if axis.range.log else generator.uniform(low, high)
    )
    return {axis.paths[0]: round(value) if axis.whole else value}


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {path: value for part in parts for path, value in part.items()}


def _needs_trials(sweep: SweepConfig) -> int:
    if sweep.budget.trials is None:
        raise UserError(f"budget.trials is missing: combine {sweep.combine} draws that many settings")
    return sweep.budget.trials


def _axis(sweep: SweepConfig, name: str, given: tuple[Any, ...] | Range) -> Axis:
    paths = tuple(part.strip() for part in name.split(","))
    for path in paths:
        if path not in option_paths():
            raise UserError(f"axes: {path}: unknown option, {nearest_option(path)}")
        if path == "seed":
            raise UserError("axes: seed: is given as seeds")
        if path in ("data.folds", "data.fold"):
            raise UserError(f"axes: {path}: data.folds is an option of the base, for every setting")
        if any(path == never or path.startswith(f"{never}.") for never in FREE_ON_RESUME):
            raise UserError(f"axes: {path}: decides nothing about what is learned")
    if isinstance(given, Range):
        return _range_axis(sweep, paths, given)
    rows = [(value,) if len(paths) == 1 else value for value in given]
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != len(paths):
            raise UserError(f"axes: {name}: {row} must be a list of {len(paths)} values, one for each option")
    return Axis(paths, tuple(tuple(row) for row in rows), None)


def _range_axis(sweep: SweepConfig, paths: tuple[str, ...], given: Range) -> Axis:
    if len(paths) > 1:
        raise UserError(f"axes: {', '.join(paths)}: options that vary together need a list of values")
    whole = _takes_integers(sweep, paths[0], given)
    if given.steps is None:
        if sweep.combine not in ("random", "tpe"):
            raise UserError(f"axes: {paths[0]}: steps is missing: combine {sweep.combine} needs single values")
        return Axis(paths, (), given, whole)
    spaced = (np.geomspace if given.log else np.linspace)(given.low, given.high, given.steps)
    values = dict.fromkeys(round(value) if whole else float(f"{value:.6g}") for value in spaced)
    return Axis(paths, tuple((value,) for value in values), given, whole)


def _takes_integers(sweep: SweepConfig, path: str, given: Range) -> bool:
    """Whether the option is one of integers, which its value in a config shows."""
    whole = given.low == int(given.low) and given.high == int(given.high)
    try:
        return whole and isinstance(sweep.base.replace(**{path: int(given.low)}).get(path), int)
    except ValidationError:
        return False  # what is wrong is said of the setting
