"""One run from config to summary, the same for every technique: resume, learn, test, record."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.config import UNTRACKED, Config
from jaxtrain.config_io import without_passwords
from jaxtrain.data.base import Dataset
from jaxtrain.data.digest import data_digest
from jaxtrain.errors import JaxtrainError, RunError, UserError
from jaxtrain.evaluation.costs import training_seconds
from jaxtrain.evaluation.evaluate import evaluate_on_test, track_evaluation
from jaxtrain.files import optional, user_cache
from jaxtrain.label_metrics import best_thresholds
from jaxtrain.redact import redact
from jaxtrain.runs.directory import RunDirectory
from jaxtrain.runs.fitted import Fitted, read_model, restored, save_model
from jaxtrain.runs.learning import Job, Learned, Learning, Learns, Part, Pruned
from jaxtrain.runs.report import Reporter, flat_config, versions
from jaxtrain.tracking import Tracker
from jaxtrain.tracking.mirroring import wanted_mirrors
from jaxtrain.tracking.store import database_file, named_here, tracking_uri
from jaxtrain.tracking.tracker import look
from jaxtrain.training import processes
from jaxtrain.training.parallel import set_cpu_devices
from jaxtrain.training.signals import Interrupted, StopRequest
from jaxtrain.training.technique import Binding
from jaxtrain.trees import tree_digest

_LAST_SECONDS = 4.0
"""For MLflow to hear of a run that a signal stopped; what it did not get is sent later."""
_log = logging.getLogger(__name__)


def run(technique: Learns, dataset: Dataset, part: Part | None = None) -> Fitted:
    """Train `technique` on `dataset` as its config says, in its run directory; resume or return if that is done.

    Raises UserError for options that cannot be, RunError when the run can't go on, Interrupted after a signal. As
    `part` of a sweep it is not tested, and may raise Pruned.
    """
    with begin(technique, dataset, part) as job:
        if isinstance(job, Fitted):
            return job
        with under_way(job):
            conclude(job, job.learning.learn(job.tracker))
        if processes.count() == 1:
            job.stop.check("the run had ended already; it is complete")  # while MLflow got the last of it
    return job.result


@contextmanager
def begin(
    technique: Learns, dataset: Dataset, part: Part | None, stop: StopRequest | None = None
) -> Iterator[Job | Fitted]:
    """The run directory, held and checked, and what is to be done in it; its result where it is done.

    `stop` is the request of who listens to signals already.
    """
    if (split := technique.config.data.split) is not None:
        raise UserError(f"data.split {split}: an option of commands that measure; a run trains on the training images")
    if technique.config.data.task == "any_of":
        raise UserError(
            "data.task any_of: an option of commands that measure; runs train with multiclass or multilabel"
        )
    set_cpu_devices(technique.config.parallel)
    with contextlib.ExitStack() as stack:
        opened = _open(technique, dataset, stack)
        reporter = Reporter(opened.config, opened.run_dir)
        if opened.done is not None:
            saved = read_model(opened.run_dir)
            if dataset.class_names != saved.about.class_names:  # begun by a version that noted no more of the data
                known = saved.about.class_names
                raise UserError(f"{opened.run_dir} knows the classes {known}, not {dataset.class_names}")
            reporter.already_done(opened.done)
            yield restored(technique, saved, run_dir=opened.run_dir, summary=opened.done)
            return
        listening = StopRequest(f"continue with: {reporter.resume_command()}") if stop is None else nullcontext(stop)
        with listening as stop, _failures_written(_error_log(opened.run_dir)):
            bound = technique.bind(opened.config)
            dataset.bad_images.allowed = opened.config.data.max_bad_images
            yield Job(bound, dataset, opened.directory, opened.run_dir, reporter, stop, opened.resuming, part)


@dataclass
class _Opened:
    """A run directory that is held, and what was found in it."""

    directory: RunDirectory
    run_dir: Path
    """The run's; `directory` is a scratch one in all processes but the first."""
    config: Config
    """Resolved."""
    resuming: bool
    done: dict[str, Any] | None
    """The summary of a run that is complete."""


def _open(technique: Learns, dataset: Dataset, stack: contextlib.ExitStack) -> _Opened:
    """Open the run directory.

    Process 0 alone does. The others get the same config and a scratch directory: they do all that process 0 does, so
    that no collective operation lacks a partner, and what they write is thrown away.
    """
    given = config = technique.config
    directory: RunDirectory | None = None
    data = _identity(dataset)

    def open_directory() -> dict[str, Any]:
        nonlocal directory, config
        if given.tracking.enabled:
            tracking_uri(given.tracking.uri)  # a wrong one leaves no directory behind
        wanted_mirrors(given.tracking)  # likewise
        placed = given.run_dir is not None or given.name is not None
        name = "" if placed else f"{dataset.name}-{technique.model_name}"  # which reads the weights
        directory = stack.enter_context(RunDirectory.open(given, default_name=name))
        config = technique.resolve(directory.continued(given), dataset, directory.path)
        _check_store(config, given, directory.path)
        resuming = directory.check_config(_for_disk(config), len(dataset.train))
        directory.check_data(data)
        told = {"run_dir": str(directory.path), "config": config.model_dump(mode="json"), "data": data}
        return {**told, "resuming": resuming, "done": directory.finished()}

    told = processes.decided(open_directory)
    if directory is None:
        if told["data"] != data:
            raise RunError(f"the training images of {dataset.name} here are not those of process 0")
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxtrain-"))
        directory = stack.enter_context(RunDirectory(Path(scratch)))
        config = Config.model_validate(told["config"]).replace(**{"quiet": True, **UNTRACKED})
    return _Opened(directory, Path(told["run_dir"]), config, told["resuming"], told["done"])


def _check_store(config: Config, given: Config, run_dir: Path) -> None:
    """A server that only the run directory names may be a stranger's, and would get the credentials of this user."""
    uri = config.tracking.uri
    if config.tracking.enabled and uri and given.tracking.uri is None and not (database_file(uri) or named_here(uri)):
        told = f"only {run_dir / 'config.yaml'} names the MLflow server {redact(uri)}"
        raise UserError(f"{told}; if you trust it, give it as tracking.uri or MLFLOW_TRACKING_URI")


def _identity(dataset: Dataset) -> dict[str, Any]:
    """What a run learns from, as JSON: it goes on with the same alone."""
    val = dataset.val
    return {
        "classes": list(dataset.class_names),
        "training images": len(dataset.train),
        "validation images": 0 if val is None else len(val),
        "sha256": data_digest(dataset.train),
        "sha256 of validation": None if val is None else data_digest(val),
    }


def _error_log(run_dir: Path) -> Path:
    """Where the traceback of this process goes."""
    if processes.primary() or not run_dir.is_dir():
        return run_dir / "error.log"
    return run_dir / f"error-process-{processes.index()}.log"


def conclude(job: Job, learned: Learned) -> None:
    """Keep what was learned, and test it unless a sweep does that; raises Interrupted after a signal."""
    if job.part is None:
        job.stop.unsaved(False)  # the last checkpoint is on the disk
    summary = _summary(job, learned) | {"test_accuracy": None, "test_loss": None}
    job.fitted = replace(_keep(job, learned), summary=summary)
    if job.part is None:
        _heed_signals(job)
        job.fitted = replace(job.fitted, summary=summary | _test(job))
    else:
        for key, value in job.part.tags(True).items():
            job.tracker.tag(key, value)
    _heed_signals(job)


def _heed_signals(job: Job) -> None:
    """All processes together."""
    job.stop.requested = processes.decided(lambda: job.stop.requested)
    if job.stop.requested is not None:
        raise job.interrupted("stopped after training, before the run was recorded", agreed=True)


def _test(job: Job) -> dict[str, Any]:
    """Open the test set once, through the Benchmark room: its figures, for the summary."""
    learning, summary, tracker = job.learning, job.result.summary, job.tracker
    technique, folder, dataset = job.technique.technique, job.directory.path / "benchmark", learning.dataset
    predictor = learning.predictor(job.result)
    evaluation = evaluate_on_test(
        predictor,
        dataset,
        folder=folder,
        technique=technique,
        model=summary["model"],
        params_sha256=summary["params_sha256"],
    )
    if evaluation is None:
        _log.warning("%s has no test images: nothing was tested (data.test_fraction holds some out)", dataset.name)
        return {}
    metrics = evaluation.metrics
    tracker.log(summary["steps"], metrics)
    more = learning.after_test(evaluation.test, predictor, tracker)
    tracker.tag("params_sha256", summary["params_sha256"])
    tracker.tag("mlflow.note.content", job.reporter.note(evaluation))
    with optional("the evaluation in MLflow"):
        track_evaluation(
            evaluation,
            job.config.tracking,
            root=job.directory.path,
            folder=folder,
            run_name=f"{technique}-{job.directory.path.name}",
            source_run_id=tracker.wait_run_id(timeout=30.0),
            model_id=tracker.wait_model_id(timeout=30.0),
        ).finish("FINISHED")
    job.tested = evaluation
    return {f"test_{name}": metrics[f"test/{name}"] for name in (job.result.task.figure, "loss")} | more


@contextmanager
def under_way(job: Job) -> Iterator[None]:
    """Everything around learning: MLflow, the plan on the screen, and at the end the summary."""
    use_compilation_cache(job.config)
    with contextlib.closing(job.technique.learning(job)) as learning:
        job.check("stopped before training began")
        tracker = start_tracking(job, learning)
        job.learning, job.tracker = learning, tracker
        with _tracked(tracker, job.reporter):
            plan = learning.plan(job.reporter.run_dir, look(tracker.uri) if tracker.uri else None)
            job.reporter.plan(plan, learning.position if job.resuming else None)
            job.check("stopped before training began")
            yield

    def record() -> dict[str, Any]:
        skipped = job.dataset.bad_images.listed()
        skips = {"skipped_images": len(skipped), "skipped": skipped}
        summary = {**job.result.summary, **skips, "mlflow_run_id": tracker.run_id}
        job.directory.write_summary(summary)
        return summary

    job.fitted = replace(job.result, summary=processes.decided(record))
    job.reporter.result(dict(job.result.summary), job.tested)


def start_tracking(job: Job, learning: Learning) -> Tracker:
    """Begin or continue the MLflow run of the technique's experiment."""
    technique, run_dir = job.technique.technique, job.directory.path
    tracker = Tracker.start(
        job.config.tracking,
        run_dir=run_dir,
        experiment=technique.upper(),
        run_name=run_dir.name,
        params=flat_config(job.config),
        tags={
            "technique": technique,
            "run_dir": str(run_dir),
            **versions(),
            **(job.part.tags(False) if job.part else {}),
        },
        history=learning.history,
        mirrored=True,
    )
    dataset = learning.dataset
    tracker.artifact(run_dir / "config.yaml")
    for context, source in (("train", dataset.train), ("val", dataset.val)):
        if source is not None:
            profile = {"images": len(source), "classes": dataset.num_classes}
            tracker.log_input(dataset.name, job.config.data.name, data_digest(source), context, profile)
    return tracker


def _keep(job: Job, learned: Learned) -> Fitted:
    """What was learned, also in `model/` and as an MLflow model."""
    names, model_dir = job.dataset.class_names, job.directory.path / "model"
    binding = Binding(len(names), learned.technique.binding.class_weights)
    bound = learned.technique.bind(_for_disk(job.config), binding)
    classes = {} if job.dataset.classes is None else {"classes": list(job.dataset.classes)}
    fitted = Fitted(bound, names, bound.merged(learned.weights), {**learned.extra, **classes}, job.run_dir)
    if job.dataset.multilabel:
        fitted = replace(fitted, extra={**fitted.extra, "thresholds": _thresholds(job, fitted)})
    if processes.primary():
        save_model(fitted, model_dir)
    if job.config.tracking.log_model:
        with optional("the model in MLflow"):
            register = job.config.tracking.register
            job.tracker.log_model(model_dir, learned.example, names, step=learned.best_step, register=register)
    return fitted


def _thresholds(job: Job, fitted: Fitted) -> list[float]:
    """Where each label is given, by the validation images that could be read; 0.5 without any."""
    decision, val = job.config.decision, job.learning.dataset.val
    if val is None or decision.threshold != "fitted":
        return [0.5] * len(fitted.class_names)
    logits = job.learning.predictor(fitted).predict_logits(val)
    sound = np.isfinite(logits).all(axis=1)
    aim = next((name for name in ("precision", "recall") if getattr(decision, name) is not None), "f1")
    return best_thresholds(val.labels[sound], logits[sound], aim, getattr(decision, aim, None))


def _summary(job: Job, learned: Learned) -> dict[str, Any]:
    """Everything but the test figures and the MLflow run."""
    dataset, count, weights = job.dataset, _count(learned.weights["params"]), job.config.model.weights
    return {
        "technique": job.technique.technique,
        "model": job.config.model.label,
        "dataset": dataset.name,
        "classes": dataset.num_classes,
        **({"task": "multilabel"} if dataset.multilabel else {}),
        "steps": learned.steps,
        "wall_seconds": round(learned.seconds, 3),
        "images_per_second": round(learned.images / max(learned.seconds, 1e-9), 1),
        "images_seen": learned.images,
        "val_accuracy": learned.val_accuracy,
        "best_step": learned.best_step,
        "params": count + _count(learned.weights["frozen"]),
        "trainable_params": count,
        "params_sha256": tree_digest(learned.weights["params"]),
        "devices": learned.devices,
        "versions": versions(),
        **({} if weights is None else {"pretraining_seconds": training_seconds(Path(weights))}),
        **learned.summary,
    }


def _for_disk(config: Config) -> Config:
    """As it is kept: without what belongs to this start, so that the file starts another run, and no password."""
    of_this_start = ("run_dir", "name", "parallel.coordinator", "parallel.num_processes", "parallel.process_id")
    return without_passwords(config).replace(**dict.fromkeys(of_this_start), quiet=False)


def _count(tree: Any) -> int:
    return sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(tree))


def use_compilation_cache(config: Config) -> None:
    """Compiled programs are kept in the user's cache folder, unless JAX was told where to keep them."""
    if not config.parallel.compilation_cache or getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    jax.config.update("jax_compilation_cache_dir", str(user_cache() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextmanager
def _tracked(tracker: Tracker, reporter: Reporter) -> Iterator[None]:
    """The run in MLflow ends as what happened: FINISHED, KILLED or FAILED."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt, Pruned):
        reporter.tracking_ended(tracker.finish("KILLED", timeout=_LAST_SECONDS))
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
    except (Interrupted, Pruned):
        raise
    except Exception as error:
        with contextlib.suppress(OSError):  # on a full disk the error itself is worth more
            path.write_text(redact(traceback.format_exc()))
        if isinstance(error, JaxtrainError):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise RunError(f"{type(error).__name__}: {first}; traceback: {path}") from error
