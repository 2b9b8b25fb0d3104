"""What a run tells people: the plan, progress and result on the screen; parameters, versions and curves for MLflow."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.config import Config, FinetuneConfig
from jaxtrain.data.base import Dataset, ImageSource, class_counts
from jaxtrain.data.order import sampler
from jaxtrain.data.sources import ARRAYS
from jaxtrain.evaluation import plots
from jaxtrain.evaluation.evaluate import Record
from jaxtrain.files import from_here
from jaxtrain.redact import redact
from jaxtrain.runs.resolve import total_steps
from jaxtrain.runs.setup import Setup
from jaxtrain.screen.console import Part, Plan, Result, log_to_stderr, print_line, show_plan, show_result
from jaxtrain.screen.program import command
from jaxtrain.screen.progress import Progress
from jaxtrain.tasks import task_of
from jaxtrain.tracking import Tracker, TrackerReport
from jaxtrain.tracking.store import named_here
from jaxtrain.training.inference import Inference
from jaxtrain.training.progress import Timetable
from jaxtrain.training.state import Tree

_log = logging.getLogger(__name__)


class Reporter:
    """Prints the course of one run; nothing when the config says quiet."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        self._config = config
        self._run_dir = from_here(run_dir)
        self._bar: Progress | None = None
        self._look: str | None = None
        if not config.quiet:
            log_to_stderr()

    def already_done(self, summary: Mapping[str, Any]) -> None:
        """The run directory holds a finished run."""
        if not self._config.quiet:
            name = task_of(self._config).figure
            value = summary.get(f"test_{name}")
            tested = "" if value is None else f", test {name} {value:.2%}"
            print_line(f"{self._run_dir} is finished: {summary['steps']} steps{tested}. Nothing to do.")

    @property
    def run_dir(self) -> Path:
        """The run directory, as short as can be."""
        return self._run_dir

    def plan(self, plan: Plan, resumed_at: str | None) -> None:
        """Before training."""
        self._look = plan.look
        if self._config.quiet:
            return
        show_plan(plan)
        if resumed_at is not None:
            print_line(f"resuming at {resumed_at}")

    @contextmanager
    def progress(self, table: Timetable, start_step: int, history: Iterable[Mapping[str, Any]]) -> Iterator[None]:
        """Around training; `history`: the journal so far."""
        if self._config.quiet:
            yield
            return
        name = f"val/{task_of(self._config).figure}"
        best = max((record[name] for record in history if name in record), default=None)
        with Progress(table.total_steps, table.steps_per_epoch, start_step, best) as self._bar:
            yield
        self._bar = None

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """A record of the journal."""
        if self._bar is None:
            return
        if "val/loss" in metrics:
            self._bar.evaluated(step, metrics)
        else:
            self._bar.update(step, metrics)

    def resume_command(self) -> str:
        """What continues this run."""
        if self._config.data.name == ARRAYS or self._config.own.classifier is not None:
            return f"the same fit(), with run_dir={str(self._run_dir)!r}"
        uri = self._config.tracking.uri if self._config.tracking.enabled else None
        store = [] if uri is None or named_here(redact(uri)) else ["--tracking.uri", redact(uri)]
        return shlex.join(command("train", "--technique", self._config.technique, "--run-dir", self._run_dir, *store))

    def note(self, tested: Record) -> str:
        """The result in words, and the command that repeats it, for MLflow's page of the run."""
        figure = task_of(self._config).figure
        value, (low, high) = tested.metrics[f"test/{figure}"], tested.measured.intervals[figure]
        images, dataset = len(tested.predictions.labels), tested.predictions.dataset
        again = shlex.join(command("train", "--config", self._run_dir / "config.yaml"))
        on = f"the {images:,} test images of {dataset}"
        if tested.predictions.multilabel:
            found = f"The mean average precision on {on} is {value:.2%}"
        else:
            found = f"{value:.2%} of {on} are classified right"
        return f"{found} (95% interval {low:.2%} to {high:.2%}).\n\nThe same again: `{again}`"

    def tracking_ended(self, report: TrackerReport) -> None:
        """Say what MLflow did not get."""
        if report.problem is not None:
            where = self._run_dir / "metrics.jsonl"
            store = [] if report.uri is None or named_here(report.uri) else ["--uri", report.uri]
            remedy = shlex.join(command("sync", self._run_dir, *store))
            told = "MLflow lacks %d records (%s); all are in %s, and %s sends them"
            _log.warning(told, report.unsent_rows, report.problem, where, remedy)

    def result(self, summary: Mapping[str, Any], tested: Record | None) -> None:
        """At the end."""
        if self._config.quiet:
            return
        commands = {
            "look": self._look or f"less {shlex.quote(str(self._run_dir / 'metrics.jsonl'))}",
            "predict": command("predict", self._run_dir, "IMAGE"),
        }
        figure = task_of(self._config).figure
        if tested is not None:
            commands["compare"] = command("benchmark", self._run_dir, "OTHER_RUN")
        else:
            commands["test"] = "--data.test-fraction 0.2 (data={'test_fraction': 0.2} in Python) holds out a test set"
        curves = self._run_dir / "learning_curves.png"
        show_result(
            Result(
                title=f"{summary['technique'].upper()}: {summary['model']} on {summary['dataset']}",
                steps=summary["steps"],
                seconds=summary["wall_seconds"],
                run_dir=self._run_dir,
                images_per_second=summary["images_per_second"],
                figure=figure,
                val_figure=summary.get(f"val_{figure}"),
                best_step=summary["best_step"],
                test_figure=summary.get(f"test_{figure}"),
                test_loss=summary["test_loss"],
                test_interval=None if tested is None else tested.measured.intervals[figure],
                test_images=None if tested is None else len(tested.predictions.labels),
                looks=None if tested is None else tested.looks,
                skipped=summary["skipped_images"],
                curves=curves if curves.is_file() else None,
                commands=commands,
            )
        )


def flat_config(config: Config) -> dict[str, object]:
    """Every option that acts by its dotted path, as MLflow parameters."""
    flat: dict[str, object] = {}
    tree = config.model_dump(mode="json")
    if _own_optimizer(config):  # which is given the schedule
        tree["optimizer"] = {"learning_rate": config.optimizer.learning_rate}

    def enter(path: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                enter(f"{path}.{key}" if path else key, inner)
        else:
            flat[path] = value

    enter("", tree)
    return flat


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    packages = ("jaxtrain", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": sys.version.split()[0]} | {package: version(package) for package in packages}


def write_curves(run_dir: Path, tracker: Tracker, kept_step: int) -> None:
    """The learning curves as a picture in the run directory and in MLflow."""
    records = tracker.journal.records()
    if records:
        for path in plots.save(lambda: plots.learning_curves(records, kept_step), run_dir / "learning_curves.png"):
            tracker.artifact(path)


def stepwise_plan(setup: Setup, run_dir: Path, look: str | None) -> Plan:
    """What is about to be trained step by step."""
    shapes = setup.inference.network.shapes
    return Plan(
        title=f"{setup.config.technique.upper()}: {setup.config.model.label} on {setup.dataset.name}",
        parts=[Part(name, "", count) for name, count in _sizes(shapes, ("params", "frozen")).items()],
        parameters=size_of(shapes["params"]) + size_of(shapes["frozen"]),
        trainable=size_of(shapes["params"]),
        class_names=setup.dataset.class_names,
        images=counts_of_splits(setup.dataset),
        totals=_totals(setup.dataset),
        settings=_taken(setup.dataset) | _settings(setup),
        run_dir=run_dir,
        look=look,
    )


def head_plan(config: Config, dataset: Dataset, inference: Inference, run_dir: Path, look: str | None) -> Plan:
    """What is about to be embedded, and which head is trained on it."""
    data, features, devices = config.data, config.features, inference.strategy.devices
    pooled = "as the backbone's own head sees it" if features.pool == "auto" else f"pooling {features.pool}"
    joined = f", the last {features.blocks} blocks joined" if features.blocks > 1 else ""
    views = f", {features.views} views of each training image" if features.views > 1 else ""
    shots = f"{data.shots} images per class, {data.draws} draws" if data.shots else "all training images"
    return Plan(
        title=f"FE: {config.head.name} head on {config.model.label} embeddings of {dataset.name}",
        parts=[Part(name, "", count) for name, count in _sizes(inference.network.shapes, ("frozen",)).items()],
        parameters=size_of(inference.network.shapes["frozen"]),
        trainable=0,
        class_names=dataset.class_names,
        images=counts_of_splits(dataset),
        totals=_totals(dataset),
        settings=_taken(dataset)
        | {
            "weights": str(config.model.weights),
            "input": f"{data.image_size} x {data.image_size} x {data.channels}, {features.batch_size} images at once",
            "vector": f"{pooled}{joined}{views}",
            "devices": f"{len(devices)} x {devices[0].device_kind}, {config.parallel.strategy}, {config.model.dtype}",
            "head": f"{config.head.name}, on {shots}",
            "store": str(features.store),
        },
        run_dir=run_dir,
        look=look,
    )


def _taken(dataset: Dataset) -> dict[str, str]:
    """Which folder is which split, or which column holds what, where the data set has something to say of it."""
    return {"read as": dataset.taken} if dataset.taken else {}


def counts_of_splits(dataset: Dataset) -> dict[str, list[int]]:
    """Images of each class in each split that may be looked at."""
    return {name: class_counts(each.labels, dataset.num_classes).tolist() for name, each in _splits(dataset).items()}


def _totals(dataset: Dataset) -> dict[str, int]:
    """Images in each of these splits."""
    return {name: len(source) for name, source in _splits(dataset).items()}


def _splits(dataset: Dataset) -> dict[str, ImageSource]:
    return {"train": dataset.train} | ({} if dataset.val is None else {"val": dataset.val})


def _sizes(shapes: Tree, groups: Sequence[str]) -> dict[str, int]:
    """Parameters of each part of the network."""
    sizes: dict[str, int] = {}
    for group in groups:
        for name, leaf in shapes[group].items():
            part = name.partition("/")[0]
            sizes[part] = sizes.get(part, 0) + size_of(leaf)
    return sizes


def _settings(setup: Setup) -> dict[str, str]:
    config, images = setup.config, len(setup.dataset.train)
    train, optimizer, schedule = config.train, config.optimizer, config.schedule
    devices = setup.strategy.devices
    steps = total_steps(config, images)
    size = config.data.image_size
    adapted = {} if config.model.weights is None else {"weights": config.model.weights}
    if config.technique == "ft":
        adapted["adaptation"] = _adaptation(config.finetune)
    return adapted | {
        "input": f"{size} x {size} x {config.data.channels}, "
        + ("streamed from disk" if setup.streamed else "on the device"),
        "devices": f"{len(devices)} x {devices[0].device_kind}, {config.parallel.strategy}, {config.model.dtype}",
        **_epoch(config, setup.dataset),
        "length": f"{steps:,} steps of {train.batch_size} images, {steps * train.batch_size / images:.4g} epochs",
        "optimizer": _own_optimizer(config)
        or f"{optimizer.name}, learning rate {optimizer.learning_rate:g} ({schedule.name}, "
        f"{schedule.warmup_epochs:.3g} epochs of warmup), weight decay {optimizer.weight_decay:g}",
        **_loss(config),
        "augmentation": _in_words(config),
    }


def _epoch(config: Config, dataset: Dataset) -> dict[str, str]:
    """What an epoch is, where it is not every image once."""
    drawn = sampler(config.data, dataset.train.labels, dataset.num_classes)
    if drawn is None:
        return {}
    counts, names = dataset.class_counts, dataset.class_names
    ends = (int(np.where(counts > 0, counts, counts.max()).argmin()), int(counts.argmax()))
    often = " and ".join(f"one of {names[end]} ({counts[end]:,}) {drawn.times[end]:.3g} times" for end in ends)
    return {"epoch": f"{len(dataset.train):,} images, sampling {config.data.sampling}: {often} on average"}


def _loss(config: Config) -> dict[str, str]:
    """Where it is another one than cross-entropy."""
    name, *options = config.loss.model_dump(exclude_none=True).items()
    if config.loss == type(config.loss)():
        return {}
    return {"loss": ", ".join([str(name[1]), *(f"{key} {value:g}" for key, value in options if value)])}


def _own_optimizer(config: Config) -> str | None:
    """What takes the place of the options' optimizer."""
    if "make_optimizer" in config.own.overrides:
        return f"{config.own.classifier}.make_optimizer"
    return config.own.optimizer


def _adaptation(finetune: FinetuneConfig) -> str:
    trained = {
        "full": "all parameters",
        "head": "the head alone",
        "blocks": f"the last {finetune.blocks} blocks",
        "norm_bias": "norms and biases",
        "lora": f"LoRA of rank {finetune.lora_rank}",
    }
    words = {
        f"learning rates falling by {finetune.layer_decay:g} a block": finetune.layer_decay < 1,
        f"a block joining every {finetune.unfreeze_steps} steps": finetune.unfreeze_steps,
        "the head from a linear probe": finetune.linear_probe,
        f"decay towards the start {finetune.l2_sp:g}": finetune.l2_sp,
        f"WiSE-FT with {finetune.wise_ft} of the fine-tuned weights": finetune.wise_ft is not None,
    }
    head = f"learning rate of the head {finetune.head_learning_rate:g}"
    return ", ".join([trained[finetune.strategy], head, *(word for word, given in words.items() if given)])


def _in_words(config: Config) -> str:
    names = {
        "crop": "crop", "hflip": "flip", "vflip": "upside-down flip", "rotate": "rotation", "zoom": "zoom",
        "color_jitter": "colour jitter", "randaugment_layers": "RandAugment", "erasing": "erasing",
        "mixup": "mixup", "cutmix": "CutMix", "test_flips": "flips in tests too",
    }  # fmt: skip
    values = config.augment.model_dump()
    words = [word for name, word in names.items() if values[name] not in (0, 0.0, "none", None)]
    return ", ".join(words) or "none"


def size_of(tree: Any) -> int:
    """Elements of all arrays (or of their shapes)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
