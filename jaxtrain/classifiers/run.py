"""One run from config to summary, the same for every technique: resume, train, keep the best, test, record."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.classifiers.inference import Inference, host_batches, resident_batches
from jaxtrain.classifiers.report import Reporter, flat_config, versions, write_curves
from jaxtrain.classifiers.resolve import DEFAULT_MODEL, resolve, timetable, total_steps
from jaxtrain.config import Config, chosen
from jaxtrain.data.base import ArraySource, Dataset
from jaxtrain.data.order import Order
from jaxtrain.data.residence import make_resident
from jaxtrain.errors import JaxtrainError, RunError
from jaxtrain.training.checkpoints import Checkpoints, Restored, tree_digest
from jaxtrain.training.feed import Feed, ResidentFeed, open_stream
from jaxtrain.training.loop import LoopResult, Progress, snapshot, train
from jaxtrain.training.optimizers import make_schedule
from jaxtrain.training.parallel import Strategy, check_batch_size, make_strategy, set_cpu_devices
from jaxtrain.training.run_directory import RunDirectory
from jaxtrain.training.signals import Interrupted, StopRequest
from jaxtrain.training.state import TrainState, Tree, from_arrays
from jaxtrain.training.step import StepSpec, make_step

if TYPE_CHECKING:
    from jaxtrain.classifiers.base import BaseClassifier
    from jaxtrain.tracking import Tracker

_log = logging.getLogger(__name__)


@dataclass
class Setup:
    """What training needs, made before the first step."""

    config: Config
    dataset: Dataset
    strategy: Strategy
    inference: Inference
    feed: Feed
    streamed: bool
    state: TrainState
    spec: StepSpec


def run(classifier: BaseClassifier, dataset: Dataset) -> None:
    """Train `classifier` on `dataset` as its config says, in its run directory; resume or return if that is done.

    Afterwards `classifier` is fitted and has `summary` and `run_dir`. Raises UserError for options that cannot be,
    RunError when the run can't go on, Interrupted after a signal.
    """
    given = classifier.config
    set_cpu_devices(given.parallel)
    with RunDirectory.open(given, default_name=f"{dataset.name}-{given.model.name or DEFAULT_MODEL}") as directory:
        classifier.run_dir = directory.path
        config = resolve(directory.continued(given), dataset)
        resuming = directory.check_config(_for_disk(config))
        reporter = Reporter(config, directory.path)
        done = directory.finished()
        if done is not None:
            classifier.adopt(type(classifier).load(directory.path).fitted)
            classifier.summary = done
            reporter.already_done(done)
            return
        with StopRequest() as stop, _failures_written(directory.path / "error.log"):
            _train_and_test(classifier, config, dataset, directory, reporter, stop, resuming)


def _train_and_test(
    classifier: BaseClassifier,
    config: Config,
    dataset: Dataset,
    directory: RunDirectory,
    reporter: Reporter,
    stop: StopRequest,
    resuming: bool,
) -> None:
    from jaxtrain.tracking.tracker import look

    with Checkpoints(directory.checkpoints, keep=config.checkpoint.keep) as checkpoints:
        setup = prepare(classifier, config, dataset)
        restored = checkpoints.restore()
        history = restored.meta["history"] if restored else []
        progress = Progress(**restored.meta["progress"]) if restored else Progress()
        if restored:
            _check_same_data(restored, dataset)
            setup.state = from_arrays(restored.state, like=setup.state)
        tracker = start_tracking(classifier, setup, directory.path, history)
        with _tracked(tracker, reporter):
            look_at = look(tracker.uri) if tracker.uri else None
            reporter.plan(setup, look_at, resumed_at=progress.step if resuming else None)
            result = _train(classifier, setup, checkpoints, tracker, reporter, stop, progress, restored)
            if result.interrupted:
                checkpoints.wait()
                raise _interrupted(stop, reporter, f"stopped at step {result.progress.step}, which is saved")
            checkpoints.wait()
            summary = _finish(classifier, setup, result, directory.path, tracker)
            looks = _test(classifier, setup, summary, directory.path, tracker)
            if stop.requested is not None:
                raise _interrupted(stop, reporter, "stopped after training, before the run was recorded")
    summary["mlflow_run_id"] = tracker.run_id
    directory.write_summary(summary)
    classifier.summary = summary
    reporter.result(summary, looks)


def prepare(classifier: BaseClassifier, config: Config, dataset: Dataset) -> Setup:
    """Build everything up to the first step: data on the device, model, optimizer, initial state (on the host)."""
    _use_compilation_cache(config)
    classifier.config = config
    dataset = classifier.prepare(dataset)
    resident = make_resident(dataset, config)
    streamed = resident is None
    dataset = resident or dataset
    strategy = make_strategy(config.parallel)
    mixes = bool(config.augment.mixup or config.augment.cutmix)
    check_batch_size(
        config.train.batch_size,
        devices=len(strategy.devices),
        accumulate=config.train.accumulate,
        pairs=mixes,
    )
    weights = _class_weights(config, dataset)
    classifier.prepare_inputs(dataset.num_classes, weights, cropped=streamed)
    inference = Inference(classifier, dataset.num_classes, strategy)
    feed = make_feed(config, dataset, strategy, streamed=streamed)
    images, train_config = len(dataset.train), config.train
    steps = total_steps(config, images)
    schedule = make_schedule(
        config.schedule,
        peak=config.optimizer.learning_rate or 0.0,
        steps=steps,
        warmup_steps=math.floor((config.schedule.warmup_epochs or 0.0) * images / train_config.batch_size),
    )
    spec = StepSpec(
        learner=classifier,
        graphdef=inference.graphdef,
        optimizer=classifier.make_optimizer(schedule),
        schedule=schedule,
        accumulate=train_config.accumulate,
        ema_decay=train_config.ema_decay,
        axis_name=strategy.axis_name,
    )
    state = initial_state(classifier, inference, spec, config.seed)
    return Setup(config, dataset, strategy, inference, feed, streamed, state, spec)


def initial_state(classifier: BaseClassifier, inference: Inference, spec: StepSpec, seed: int) -> TrainState:
    """The state before the first step, made in one compiled program."""

    def init() -> TrainState:
        model = classifier.build_model(num_classes=classifier.num_classes, axis_name=spec.axis_name)
        split = nnx.split(model, classifier.trainable_filter, nnx.Param, ...)[1:]
        params, frozen, model_state = (nnx.to_pure_dict(part) for part in split)
        ema = {} if spec.ema_decay is None else {"params": params, "model_state": model_state}
        key = jax.random.key(seed)
        return TrainState(jnp.int32(0), params, frozen, model_state, spec.optimizer.init(params), ema, key)

    return jax.jit(init)()


def make_feed(config: Config, dataset: Dataset, strategy: Strategy, *, streamed: bool) -> Feed:
    """Training images from the device, or from a stream."""
    order = Order(len(dataset.train), config.train.batch_size, config.seed)
    if streamed:
        return open_stream(dataset.train, order, config, strategy)
    assert isinstance(dataset.train, ArraySource)
    return ResidentFeed(dataset.train, order, strategy, steps_per_call=config.train.steps_per_call or 1)


def start_tracking(classifier: BaseClassifier, setup: Setup, run_dir: Path, history: list[dict[str, Any]]) -> Tracker:
    """Begin or continue the MLflow run of the technique's experiment."""
    from jaxtrain.tracking import Tracker

    tracker = Tracker.start(
        setup.config.tracking,
        run_dir=run_dir,
        experiment=classifier.technique.upper(),
        run_name=run_dir.name,
        params=flat_config(setup.config),
        tags={"technique": classifier.technique, "run_dir": str(run_dir), **versions()},
        history=history,
    )
    dataset = setup.dataset
    tracker.artifact(run_dir / "config.yaml")
    for context, source in (("train", dataset.train), ("val", dataset.val)):
        if source is not None:
            profile = {"images": len(source), "classes": dataset.num_classes}
            tracker.log_input(dataset.name, setup.config.data.name, data_digest(source), context, profile)
    return tracker


def _train(
    classifier: BaseClassifier,
    setup: Setup,
    checkpoints: Checkpoints,
    tracker: Tracker,
    reporter: Reporter,
    stop: StopRequest,
    progress: Progress,
    restored: Restored | None,
) -> LoopResult:
    config, dataset = setup.config, setup.dataset
    table = timetable(config, len(dataset.train), streamed=setup.streamed)
    watcher = Watcher(tracker, reporter, checkpoints, stop, data_digest(dataset.train))
    with reporter.progress(table, progress.step):
        try:
            return train(
                setup.strategy.place(setup.state),
                make_step(setup.spec),
                setup.feed,
                setup.strategy,
                table,
                watcher,
                evaluator(setup),
                monitor=config.train.monitor,
                progress=progress,
                best=restored.best if restored else None,
            )
        finally:
            setup.feed.close()


def evaluator(setup: Setup) -> Callable[[TrainState], dict[str, float]] | None:
    """Validation metrics of a state; None where there is no validation set."""
    val, inference = setup.dataset.val, setup.inference
    if val is None:
        return None
    fixed = None if setup.streamed else resident_batches(inference, val)

    def evaluate(state: TrainState) -> dict[str, float]:
        weights = {"params": state.eval_params, "frozen": state.frozen, "model_state": state.eval_model_state}
        metrics = inference.metrics(weights, inference.batches(val) if fixed is None else fixed, len(val))
        return {f"val/{name}": value for name, value in metrics.items()}

    return evaluate


class Watcher:
    """Passes what the loop says to the journal, the screen and the disk."""

    def __init__(
        self, tracker: Tracker, reporter: Reporter, checkpoints: Checkpoints, stop: StopRequest, data: str
    ) -> None:
        self._tracker, self._reporter, self._checkpoints, self._stop, self._data = (
            tracker, reporter, checkpoints, stop, data,
        )  # fmt: skip

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A record for the journal and the screen."""
        self._tracker.log(step, metrics)
        self._reporter.metrics(step, metrics)

    def save(self, progress: Progress, state: dict[str, Any], best: Any | None) -> None:
        """A checkpoint with the metric history and what identifies the data."""
        meta = {
            "progress": progress.to_meta(),
            "history": self._tracker.journal.records(),
            "data": self._data,
        }
        pair = None if best is None else (progress.best_step, best)
        self._checkpoints.save(progress.step, state, meta, best=pair)

    def stop_requested(self) -> bool:
        """Whether a signal came."""
        return self._stop.requested is not None


def _finish(
    classifier: BaseClassifier, setup: Setup, result: LoopResult, run_dir: Path, tracker: Tracker
) -> dict[str, Any]:
    """Keep the selected weights in `model/` and as an MLflow model; return the summary but for the test figures."""
    from jaxtrain.classifiers.base import Fitted

    config, dataset, progress = setup.config, setup.dataset, result.progress
    last = config.train.select == "last" or result.best is None
    weights: Tree = snapshot(result.state, setup.strategy) if last else result.best
    best_step = progress.step if last else progress.best_step
    classifier.adopt(Fitted(_for_disk(config), dataset.class_names, weights, _class_weights(config, dataset)))
    model_dir = run_dir / "model"
    classifier.save(model_dir)
    write_curves(run_dir, tracker)
    if config.tracking.log_model:
        example = np.asarray(next(host_batches(config, dataset.train, 1)).image)
        tracker.log_model(model_dir, example, dataset.class_names, step=best_step)
    count = _count(weights["params"])
    return {
        "technique": classifier.technique,
        "model": chosen(config.model.name),
        "dataset": dataset.name,
        "classes": dataset.num_classes,
        "steps": progress.step,
        "wall_seconds": round(progress.seconds, 3),
        "images_per_second": round(progress.step * config.train.batch_size / max(progress.seconds, 1e-9), 1),
        "val_accuracy": (progress.latest if last else progress.best).get("val/accuracy"),
        "best_step": best_step,
        "params": count + _count(weights["frozen"]),
        "trainable_params": count,
        "params_sha256": tree_digest(weights["params"]),
        "devices": [str(device.device_kind) for device in setup.strategy.devices],
        "versions": versions(),
    }


def _test(
    classifier: BaseClassifier, setup: Setup, summary: dict[str, Any], run_dir: Path, tracker: Tracker
) -> int | None:
    """Open the test set once, through the Benchmark room; adds its figures to the summary, returns the looks so far."""
    from jaxtrain.benchmark.evaluate import evaluate_on_test, track_evaluation

    evaluation = evaluate_on_test(
        classifier,
        setup.dataset,
        folder=run_dir / "benchmark",
        technique=classifier.technique,
        model=chosen(setup.config.model.name),
        params_sha256=summary["params_sha256"],
    )
    summary |= {"test_accuracy": None, "test_loss": None}
    if evaluation is None:
        _log.warning("%s has no test images: nothing was tested", setup.dataset.name)
        return None
    metrics = evaluation.metrics
    summary |= {"test_accuracy": metrics["test/accuracy"], "test_loss": metrics["test/loss"]}
    tracker.log(summary["steps"], metrics)
    tracker.tag("params_sha256", summary["params_sha256"])
    track_evaluation(
        evaluation,
        setup.config.tracking,
        folder=run_dir / "benchmark",
        run_name=f"{classifier.technique}-{run_dir.name}",
        source_run_id=tracker.wait_run_id(timeout=30.0),
    )
    return evaluation.looks


def _interrupted(stop: StopRequest, reporter: Reporter, what: str) -> Interrupted:
    assert stop.requested is not None
    return Interrupted(stop.requested, f"{what}; continue with: {reporter.resume_command()}")


def data_digest(source: Any) -> str:
    """What identifies a split cheaply: the pixels of arrays, the names of files; and the labels."""
    import hashlib

    digest = hashlib.sha256(np.ascontiguousarray(source.labels).tobytes())
    if isinstance(source, ArraySource):
        digest.update(np.ascontiguousarray(source.images).data)
    else:
        for index in range(len(source)):
            digest.update(source.describe(index).encode())
    return digest.hexdigest()


def _check_same_data(restored: Restored, dataset: Dataset) -> None:
    if restored.meta["data"] != data_digest(dataset.train):
        raise RunError(
            f"the training images of {dataset.name} are not those that this run began with; start a new run, or bring "
            "the images back"
        )


def _class_weights(config: Config, dataset: Dataset) -> tuple[float, ...] | None:
    """Inverse frequencies whose mean over the training images is 1; classes without an image get 0."""
    if config.train.class_weights == "none":
        return None
    counts = dataset.class_counts
    present = np.count_nonzero(counts)
    return tuple(float(len(dataset.train) / (present * n)) if n else 0.0 for n in counts)


def _for_disk(config: Config) -> Config:
    """As it is kept: without the place of this run, so that the file starts another one, and without a password."""
    from jaxtrain.tracking import redact

    uri = config.tracking.uri
    return config.replace(**{"run_dir": None, "name": None, "tracking.uri": None if uri is None else redact(uri)})


def _count(tree: Any) -> int:
    return sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(tree))


def _use_compilation_cache(config: Config) -> None:
    """Compiled programs are kept in the user's cache folder, unless JAX was told where to keep them."""
    import os

    if not config.parallel.compilation_cache or getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(root / "jaxtrain" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextmanager
def _tracked(tracker: Tracker, reporter: Reporter) -> Iterator[None]:
    """The run in MLflow ends as what happened: FINISHED, KILLED or FAILED."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        reporter.tracking_ended(tracker.finish("KILLED"))
        raise
    except BaseException:
        reporter.tracking_ended(tracker.finish("FAILED"))
        raise
    reporter.tracking_ended(tracker.finish("FINISHED"))


@contextmanager
def _failures_written(path: Path) -> Iterator[None]:
    """The traceback of a failed run goes to a file; what a person sees is one line."""
    path.unlink(missing_ok=True)
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        path.write_text(traceback.format_exc())
        if isinstance(error, JaxtrainError):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise RunError(f"{type(error).__name__}: {first}; traceback: {path}") from error
