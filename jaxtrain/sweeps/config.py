"""The file of a sweep: a base config, what is varied, how it is combined, and what decides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from jaxtrain.config import Config, Count, Positive, Section
from jaxtrain.config_io import config_from, cut, explain, find_config, load_config, read_yaml, shown
from jaxtrain.errors import UserError, nearest
from jaxtrain.files import run_name

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Repeat(NamedTuple):
    """What tells the runs of one setting apart."""

    seed: int
    fold: int | None = None
    """In cross-validation the fold that its model is tested on."""

    def __str__(self) -> str:
        return f"seed {self.seed}" + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def suffix(self) -> str:
        """Ends the names of its runs."""
        return f"s{self.seed}" + ("" if self.fold is None else f"-f{self.fold}")


class Range(Section):
    """Values of a number between two ends."""

    low: float
    """The smallest value."""
    high: float
    """The largest value."""
    log: bool = False
    """Even on a logarithmic scale."""
    steps: Annotated[int, Field(ge=2)] | None = None
    """So many values, both ends among them (None: any number between; combine random and tpe)."""

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, not {self.low:g}")
        return self


class Budget(Section):
    """When to stop."""

    trials: Count | None = None
    """Settings that random and tpe draw; for the others the most that they may make."""
    seconds: Positive | None = None
    """Start no run after this many seconds of this command; running it again goes on."""


class SweepConfig(Section):
    """An ablation or a search."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """Name of the sweep and of its folder runs/sweeps/NAME (default: that of the file)."""
    base: Config
    """The config that everything starts from: options, the path of a YAML file, relative to this one, or a
    recipe's name."""
    axes: dict[str, tuple[Any, ...] | Range]
    """What varies: the path of an option with values, or with {low, high, log, steps}. Several paths, joined by
    commas, vary together: each value is then a list of one value for each. May be left out where the base has
    data.folds."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Each setting is trained with each seed, on each fold where the base has data.folds; a number N stands for 0 to
    N - 1."""
    combine: Literal["grid", "one_at_a_time", "zip", "random", "tpe"] = "grid"
    """grid: every combination; one_at_a_time: the base, and each value alone in its place; zip: the first values
    together, the second values, ...; random: drawn; tpe: proposed by Optuna from what came out so far."""
    objective: Literal["val/accuracy", "val/mAP", "val/loss"] = "val/accuracy"
    """What decides, by the weights that a run keeps: the highest accuracy (mAP, where images have several labels), or
    the lowest loss."""
    budget: Budget = Budget()
    """When to stop."""
    pruning: Literal["none", "median", "halving"] = "none"
    """Stop runs that do badly: below the median of the others at the same step, or by successive halving."""
    together: Literal["auto", "always", "never"] = "auto"
    """Train runs that can share a program in one, side by side; auto: on GPU and TPU."""
    group: Count = 32
    """The most runs that train side by side."""
    workers: Count | None = None
    """Processes of this command on this machine (default: on CPU one a core for technique pt, else 1)."""
    storage: str | None = None
    """Where Optuna keeps the trials (default: SQLite in the folder of the sweep); for many machines
    postgresql://USER@HOST/DATABASE, which needs the extra jaxtrain[postgres]."""
    seed: Seed = 0
    """Seed of what random and tpe draw."""
    test: bool = True
    """Measure the chosen setting and the baseline on the test set, once, at the end."""

    @field_validator("seeds", mode="before")
    @classmethod
    def _number_of_seeds(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        if value < 1:
            raise ValueError("there must be at least 1")
        return tuple(range(value))

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed is given twice")
        return value

    @property
    def repeats(self) -> list[Repeat]:
        """Each setting is trained so often."""
        folds = [None] if self.base.data.folds is None else [*range(self.base.data.folds)]
        return [Repeat(seed, fold) for seed in self.seeds for fold in folds]

    @property
    def repeated(self) -> str:
        """Over what means are taken, in words."""
        if self.base.data.folds is None:
            return "seeds"
        return "folds" if len(self.seeds) == 1 else "seeds and folds"

    @property
    def folder(self) -> Path:
        """Where everything of the sweep is."""
        return Path("runs", "sweeps", self.name).absolute()

    @property
    def higher_is_better(self) -> bool:
        """Of the objective."""
        return self.objective != "val/loss"


def load_sweep(path: Path) -> SweepConfig:
    """Read the file of a sweep. Raises UserError of one line where something in it is wrong."""
    tree = read_yaml(path, "'axes: {optimizer.learning_rate: [0.001, 0.003]}'")
    _refuse_unknown(tree, SweepConfig, str(path))
    if isinstance(tree.get("budget"), Mapping):
        _refuse_unknown(tree["budget"], Budget, f"{path}: budget")
    if "base" in tree:
        tree["base"] = _base(tree["base"], path)
        if tree["base"].data.folds is not None and tree.get("combine", "grid") == "grid":
            tree.setdefault("axes", {})
    for key in ("base", "axes"):
        if key not in tree:
            raise UserError(f"{path}: {key} is missing: {_about(SweepConfig, key)}")
    tree["axes"] = _axes(tree["axes"], path) if tree["axes"] != {} or tree["base"].data.folds is None else {}
    tree.setdefault("name", run_name(path.stem))
    try:
        return SweepConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, str(path))) from None


def _base(given: Any, path: Path) -> Config:
    if isinstance(given, str):
        return load_config(find_config(given, path.parent))
    if not isinstance(given, Mapping):
        raise UserError(f"{path}: base: must be options, or the path of a YAML file, not {shown(given)}")
    return config_from(given, f"{path}: base")


def _axes(given: Any, path: Path) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not given:
        raise UserError(f"{path}: axes: must be a mapping from option paths to values, as {{train.epochs: [10, 20]}}")
    return {str(name): _axis(values, f"{path}: axes: {cut(str(name))}") for name, values in given.items()}


def _axis(given: Any, where: str) -> tuple[Any, ...] | Range:
    if isinstance(given, Mapping):
        _refuse_unknown(given, Range, where)
        try:
            return Range.model_validate(given)
        except ValidationError as error:
            raise UserError(explain(error, where)) from None
    if not isinstance(given, list):
        raise UserError(f"{where}: must be a list of values or {{low, high, log, steps}}, not {shown(given)}")
    if not given:
        raise UserError(f"{where}: is empty")
    return tuple(given)


def _refuse_unknown(tree: Mapping[str, Any], model: type[BaseModel], where: str) -> None:
    for key in tree:
        if key not in model.model_fields:
            raise UserError(f"{where}: {cut(str(key))}: unknown option, {nearest(str(key), model.model_fields)}")


def _about(model: type[BaseModel], key: str) -> str:
    return str(model.model_fields[key].description).partition(":")[0].rstrip(".")
