"""What a sweep is going to do: its settings resolved against data and weights, split into programs, and said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.classifiers.files import TECHNIQUES
from jaxtrain.config import Config
from jaxtrain.data.base import Dataset
from jaxtrain.data.residence import make_resident
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import DamagedError, UserError
from jaxtrain.files import from_here
from jaxtrain.readers import read_json
from jaxtrain.runs.program import program_key
from jaxtrain.sweeps.config import Repeat, SweepConfig
from jaxtrain.sweeps.settings import Axis, Setting, axes_of, setting, settings_of, shown
from jaxtrain.tasks import task_of
from jaxtrain.training.parallel import check_devices, set_cpu_devices

if TYPE_CHECKING:
    from jaxtrain.models.weights import Pretrained

_SHOWN = 20
"""Values of an axis, at most."""


@dataclass(frozen=True)
class Run:
    """One setting with one seed, and one fold."""

    setting: Setting
    repeat: Repeat
    program: str
    """Runs with the same can share a compiled program."""

    @property
    def name(self) -> str:
        """Of its folder and its MLflow run."""
        return self.setting.run_name(self.repeat)

    @property
    def digest(self) -> str:
        """Of everything that decides what is learned."""
        return f"{self.setting.digest}-{self.repeat.suffix}"


@dataclass(frozen=True)
class Plan:
    """All of a sweep that is known before it begins."""

    sweep: SweepConfig
    axes: Sequence[Axis]
    runs: Sequence[Run]
    """Those of one program follow each other. For tpe: the baseline's; the others are proposed."""
    baseline: str
    """Digest of the setting that the others are compared with: the base where it is among them, else the first."""
    workshop: Workshop
    source: Path
    """The file of the sweep."""

    @property
    def programs(self) -> list[list[Run]]:
        """Runs by program."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.program, []).append(run)
        return list(found.values())

    def summary(self, run: Run) -> dict[str, Any] | None:
        """What a run came to, None where it is not done: its run directory alone decides that."""
        try:
            return read_json(self.sweep.folder / run.name / "summary.json", "summary of a run")
        except (OSError, DamagedError):
            return None  # who opens the directory says what is wrong with it


@dataclass
class Workshop:
    """Makes classifiers for settings; data sets and weights are loaded once."""

    _datasets: dict[str, Dataset] = field(default_factory=dict)
    _resident: dict[str, Dataset | None] = field(default_factory=dict)
    _pretrained: dict[str, Pretrained | None] = field(default_factory=dict)

    def classifier(self, config: Config) -> BaseClassifier:
        """An untrained one."""
        classifier = TECHNIQUES[config.technique](config)
        key = f"{config.technique} {config.model.model_dump_json()}"
        if key not in self._pretrained:
            self._pretrained[key] = classifier.pretrained
        return classifier.bind(classifier.config, pretrained=self._pretrained[key])

    def dataset(self, classifier: BaseClassifier) -> Dataset:
        """The one that it is to be trained on."""
        options = classifier.data_config
        key = options.model_dump_json()
        if key not in self._datasets:
            if options.fold is not None:  # of as many copies as folds one is kept
                self._datasets.clear()
                self._resident.clear()
            self._datasets[key] = load_dataset(options)
        return self._datasets[key]

    def images(self, classifier: BaseClassifier) -> tuple[Dataset, bool]:
        """The data set as it is trained on, and whether it lives on the device: decoded once for all runs."""
        dataset = self.dataset(classifier)
        config = classifier.resolve(classifier.config, dataset)
        if config.technique == "fe":
            return dataset, False
        key = f"{config.data.model_dump_json()} {config.augment.crop}"
        if key not in self._resident:
            self._resident[key] = make_resident(dataset, config)
        resident = self._resident[key]
        return resident or dataset, resident is not None

    def resolved(self, one: Setting) -> Config:
        """With everything chosen that the setting leaves open. Raises UserError where its options contradict."""
        try:
            classifier = self.classifier(one.config)
            return classifier.resolve(one.config, self.dataset(classifier))
        except UserError as error:
            raise UserError(f"setting {one.label}: {error}") from None

    def run(self, one: Setting, repeat: Repeat) -> Run:
        """One run of a setting."""
        config = self.resolved(one)
        return Run(one, repeat, program_key(self.classifier(config), config))


def make_plan(sweep: SweepConfig, source: Path) -> Plan:
    """Everything that can be checked before training. Raises UserError of one line for what cannot be."""
    axes, workshop = axes_of(sweep), Workshop()
    settings = settings_of(sweep, axes)
    set_cpu_devices(sweep.base.parallel)
    check_devices()
    found: dict[Config, tuple[Setting, str]] = {}
    for one in settings:
        config = workshop.resolved(one)
        if sweep.objective not in (task := task_of(config)).measured:
            other = f"did you mean 'val/{task.figure}'?"
            raise UserError(f"objective: {sweep.objective} is not measured on {task.name} data; {other}")
        options = {path: config.get(path) for path in one.options}
        key = program_key(workshop.classifier(config), config)
        found.setdefault(_comparable(config), (replace(one, options=options), key))
    base = _comparable(_resolved_base(sweep, axes, workshop))
    ordered = list(found.values())
    baseline = found.get(base, ordered[0])[0].digest
    runs = [Run(one, repeat, program) for one, program in ordered for repeat in sweep.repeats]
    programs = list(dict.fromkeys(run.program for run in runs))
    runs.sort(key=lambda run: (programs.index(run.program), run.repeat.fold or 0))
    return Plan(sweep, axes, runs, baseline, workshop, source)


def together(sweep: SweepConfig, technique: str) -> bool:
    """Whether runs of one program train side by side here: XLA:CPU is slower so (16 small CNNs cost 47 steps)."""
    if technique == "fe" or sweep.together == "never":
        return False
    return sweep.together == "always" or jax.default_backend() != "cpu"


def describe(plan: Plan, done: int) -> list[str]:
    """The plan in lines."""
    sweep, drawn = plan.sweep, plan.sweep.combine == "tpe"
    number = (sweep.budget.trials or 0) + 1 if drawn else len({run.setting.digest for run in plan.runs})
    total, seeds, folds = number * len(sweep.repeats), len(sweep.seeds), sweep.base.data.folds
    times = _many(seeds, "seed") + ("" if folds is None else f" x {folds} folds")
    lines = [
        f"Sweep {sweep.name}: {_many(number, 'setting')} x {times} = {_many(total, 'run')}"
        + (f", {done} of them done" if done else "")
    ]
    for axis in plan.axes:
        lines.append(f"  {axis.name}: {_words(axis)}")
    rule = {"none": "no pruning", "median": "pruned below the median", "halving": "pruned by successive halving"}
    lines.append(f"  combined: {sweep.combine}; decided by {sweep.objective}; {rule[sweep.pruning]}")
    for position, runs in enumerate(plan.programs, start=1):
        lines.append(f"  program {position}: {_how(sweep, runs)}")
    if drawn:
        lines.append("  proposed settings share a program wherever they differ in nothing but values")
    lines.append(f"  folder: {from_here(sweep.folder)}")
    return lines


def _how(sweep: SweepConfig, runs: Sequence[Run]) -> str:
    first = runs[0].setting.config
    what = f"{_many(len(runs), 'run')} of {first.technique.upper()}"
    if first.technique == "fe":
        return f"{what}, one after another on one store of embeddings"
    if not together(sweep, first.technique):
        return f"{what}, one after another, compiled once a process ({jax.default_backend()})"
    size = min(len(runs), sweep.group)
    return f"{what}, up to {size} side by side in one program on {jax.local_device_count()} x {jax.default_backend()}"


def _words(axis: Axis) -> str:
    if axis.values:
        words = [shown(row[0] if len(row) == 1 else row) for row in axis.values]
        if len(words) > _SHOWN:
            words[_SHOWN // 2 : -1] = ["..."]
        return ", ".join(words) + (f" ({len(axis.values)} values)" if len(axis.values) > _SHOWN else "")
    assert axis.range is not None
    return f"{axis.range.low:g} to {axis.range.high:g}" + (", logarithmic" if axis.range.log else "")


def _many(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _resolved_base(sweep: SweepConfig, axes: Sequence[Axis], workshop: Workshop) -> Config:
    try:
        return workshop.resolved(setting(sweep, {path: None for axis in axes for path in axis.paths}, checked=False))
    except UserError:
        return sweep.base  # it need not work by itself


def _comparable(config: Config) -> Config:
    return config.model_copy(update={"seed": 0, "name": None, "run_dir": None})
