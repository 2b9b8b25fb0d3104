"""What the techniques share of a run: the job, the two ways to learn it, and what was learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import optax
from numpy.typing import NDArray

from jaxtrain.config import Config
from jaxtrain.data.base import Dataset, ImageSource
from jaxtrain.evaluation.evaluate import Record
from jaxtrain.models.weights import Pretrained
from jaxtrain.runs.directory import RunDirectory
from jaxtrain.runs.fitted import Fitted, Predictor, Predicts
from jaxtrain.runs.program import Programs
from jaxtrain.runs.report import Reporter
from jaxtrain.screen.console import Plan
from jaxtrain.tracking import Tracker
from jaxtrain.training.signals import Interrupted, StopRequest
from jaxtrain.training.state import TrainState, Tree


class Pruned(Exception):  # noqa: N818  (not an error: the sweep asked for it)
    """A run of a sweep that is not worth its end."""


@dataclass(frozen=True)
class Part:
    """What a sweep asks of a run that is part of it; such a run does not read the test set."""

    programs: Programs
    """What earlier runs compiled."""
    tags: Callable[[bool], Mapping[str, str]]
    """Tags of its MLflow run: as far as they are known (False, at the start), or waited for (True, at the end)."""
    evaluated: Callable[[int, Mapping[str, float]], None]
    """Told the validation metrics of a step; may raise Pruned."""


class Learns(Predicts, Protocol):
    """What a run asks of a technique."""

    @property
    def pretrained(self) -> Pretrained | None:
        """The weights that training starts from; None: from the seed."""

    @property
    def head_name(self) -> str:
        """Where the linear layer is that gives the logits. Raises UserError where there is none."""

    @property
    def callbacks(self) -> Sequence[Any]:
        """One's own (`jaxtrain.training.callbacks`)."""

    @property
    def model_name(self) -> str:
        """Name of the network, also where the config leaves it open."""

    def resolve(self, config: Config, dataset: Dataset, run_dir: Path | None = None) -> Config:
        """`config` with everything chosen that it leaves open. Raises UserError where options contradict."""

    def learning(self, job: Job) -> Learning:
        """How it is learned."""

    def start(self, job: Job, fresh: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
        """The state before the first step, from the freshly initialised one; not called on resuming."""

    def interpolated(self, job: Job, weights: Tree) -> Tree | None:
        """Weights between those that training started from and the trained ones; None: these are the result."""

    def merged(self, weights: Tree) -> Tree:
        """Trained weights as the network has them that predicts."""

    def about(self, job: Job) -> dict[str, Any]:
        """What the technique adds to `summary.json`."""


@dataclass(eq=False)
class Job:
    """One run: what is to be learned, on what, where it is written; and what has come of it."""

    technique: Learns
    """Bound to the resolved config."""
    dataset: Dataset
    directory: RunDirectory
    """Where this process writes."""
    run_dir: Path
    """The run's; in all processes but the first another one than that of `directory`."""
    reporter: Reporter
    stop: StopRequest
    resuming: bool
    part: Part | None = None
    """The sweep that the run is part of."""
    learning: Any = None
    """Its `Learning`, once it is under way."""
    tracker: Any = None
    """Its `Tracker`, likewise."""
    fitted: Fitted | None = None
    """What was learned; it has its summary once the run is recorded."""
    tested: Record | None = None
    """What was measured on the test set."""

    @property
    def config(self) -> Config:
        """Resolved."""
        return self.technique.config

    @property
    def result(self) -> Fitted:
        """What was learned, once there is something."""
        assert self.fitted is not None
        return self.fitted

    def interrupted(self, what: str, *, agreed: bool = False) -> Interrupted:
        """The exception that ends a run after a signal: what is saved, and the command that goes on."""
        command = self.reporter.resume_command()
        return Interrupted(self.stop.requested, f"{what}; continue with: {command}", agreed=agreed)

    def check(self, what: str) -> None:
        """Raises that after a signal."""
        if self.stop.requested is not None:
            raise self.interrupted(what)


@dataclass(frozen=True)
class Learned:
    """The result of learning, before the test."""

    weights: Tree
    """Host arrays by name of {"params", "frozen", "model_state"}."""
    technique: Learns
    """As it was bound to the classes of the data set."""
    example: NDArray[Any]
    """One image `[1, height, width, channels]` of uint8 or uint16, for the signature of the MLflow model."""
    steps: int
    seconds: float
    images: int
    """Images that were passed through the network, counted each time."""
    val_accuracy: float | None
    best_step: int
    devices: list[str]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What `Fitted` keeps besides weights, as JSON."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What the technique adds to `summary.json`."""


class Learning(Protocol):
    """A way to learn: gradient steps, or a head on embeddings."""

    @property
    def dataset(self) -> Dataset:
        """The data set as it is trained on."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """Records of the journal up to where a resumed run goes on."""

    @property
    def position(self) -> str:
        """Where a resumed run goes on, in words."""

    def plan(self, run_dir: Path, look: str | None) -> Plan:
        """What a person is told before."""

    def learn(self, tracker: Tracker) -> Learned:
        """Do it. Raises Interrupted after a signal, when what can be kept is saved."""

    def predictor(self, fitted: Fitted) -> Predictor:
        """How the run itself predicts with what it has learned, all processes together."""

    def after_test(self, test: ImageSource, predictor: Predictor, tracker: Tracker) -> dict[str, Any]:
        """What the technique has to say of the test images once Benchmark has opened them; for the summary."""

    def close(self) -> None:
        """Give back threads and files."""
