"""What training sees of MLflow: a Tracker that never costs a run.

`log` writes to the journal and nothing else. Another process reads the journal and sends it to MLflow
(`sidecar.py`), so a store that is slow, away or broken neither slows training nor stops it; what was not sent
is kept in the run directory for `sync_run`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shlex
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import TrackingConfig
from jaxtrain.errors import UserError
from jaxtrain.files import file_lock, reason
from jaxtrain.redact import redact, redact_option
from jaxtrain.tracking.journal import Journal
from jaxtrain.tracking.mirroring import Mirrors, wanted_mirrors
from jaxtrain.tracking.model import default_requirements
from jaxtrain.tracking.outbox import (
    JOURNAL,
    LOCK,
    OUTBOX,
    State,
    append_request,
    check_files,
    first_start,
)
from jaxtrain.tracking.patience import Patience, patience
from jaxtrain.tracking.points import unsent_rows
from jaxtrain.tracking.process import Sidecar, sidecar
from jaxtrain.tracking.provenance import process_identity
from jaxtrain.tracking.store import database_file, sqlite_uri, tracking_uri
from jaxtrain.tracking.surroundings import own_tags, parent_run

Status = Literal["FINISHED", "FAILED", "KILLED"]

_PARENT = "mlflow.parentRunId"
_HEAR_SECONDS = 5.0
_log = logging.getLogger("jaxtrain.tracking")


@dataclass(frozen=True)
class TrackerReport:
    """How a run ended in MLflow."""

    uri: str | None
    """The store, without its password; None where tracking is off."""
    run_id: str | None
    unsent_rows: int
    """Records of the journal that MLflow does not have yet: `sync_run` sends them."""
    problem: str | None
    """Why not everything was sent, in one line."""
    mirrors: Mapping[str, str] = field(default_factory=dict)
    """Likewise of each mirror (tensorboard, wandb) that lacks something."""


@dataclass(frozen=True)
class Measures:
    """What a run says of a model that another run stored in MLflow: its metrics rank the model there."""

    model_id: str
    dataset_name: str
    dataset_digest: str


class Tracker:
    """One run's line to `metrics.jsonl` and, where tracking is on, to MLflow.

    Make one with `Tracker.start`.
    """

    def __init__(
        self, run_dir: Path, uri: str | None, root: Path | None = None, mirrors: Mapping[str, str] | None = None
    ) -> None:
        self._root = root or run_dir
        self._mirrors = Mirrors(run_dir, mirrors or {})
        self.journal = Journal(run_dir / JOURNAL)
        self.run_dir = run_dir
        self.uri = redact(uri) if uri else None
        self._secret_uri = uri
        self._patience = patience(self.uri or "")
        self._mirror_patience: Patience | None = None
        self._sidecar: Sidecar | None = None
        self._attachment: dict[str, Any] = {}
        self._session: str | None = None
        self._problem: str | None = None
        self._heard = 0
        self._hear_due = 0.0
        self._finished: TrackerReport | None = None
        self._models = False

    @classmethod
    def start(
        cls,
        config: TrackingConfig,
        *,
        run_dir: Path,
        experiment: str,
        run_name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        history: Sequence[Mapping[str, Any]] = (),
        root: Path | None = None,
        measures: Measures | None = None,
        mirrored: bool = False,
    ) -> Tracker:
        """Begin a run, or continue the one in `run_dir`, in milliseconds; MLflow follows in another process.

        `history` is what the journal held at the checkpoint from which training goes on (records as
        `Journal.records` gives them); the journal is cut back to it. Steps that MLflow already has are not
        sent again. `params` of a run that is continued are compared with the stored ones; changes are in
        the tag `jaxtrain.param_drift`. The run is nested under the caller's active one, if that is in the same store.
        Only files inside `root` (default: `run_dir`) can be sent. The metrics of a run that `measures` a stored model
        are also those of the model. `mirrored`: TensorBoard and Weights & Biases follow the run too, where the config
        asks for them.

        Raises UserError for a store that MLflow cannot use and for a mirror whose package is missing, before anything
        is written.
        """
        uri = tracking_uri(config.uri) if config.enabled else None
        mirrors = wanted_mirrors(config) if mirrored else {}
        run_dir.mkdir(parents=True, exist_ok=True)
        check_files(run_dir)
        tracker = cls(run_dir, uri, root, mirrors)
        tracker.journal.truncate(history)
        if uri is None and not mirrors:
            return tracker
        started = first_start(run_dir)
        if _PARENT not in tags and (parent := uri and parent_run(uri)):
            tags = {**tags, _PARENT: parent}
        begun = {
            "do": "start",
            "run_key": started["run_key"] if started else uuid.uuid4().hex,
            "uri": tracker.uri or "",
            "mirrors": mirrors,
            "time_ms": _now_ms(),
            "process": process_identity(os.getpid()),
            "experiment": config.experiment_prefix + experiment,
            "run_name": run_name,
            "params": {key: redact_option(key, str(value)) for key, value in params.items()},
            "tags": {key: redact_option(key, str(value)) for key, value in {**own_tags(), **tags}.items()},
            "model": None if measures is None else asdict(measures),
        }
        try:
            append_request(run_dir, begun)
        except OSError as error:
            _log.warning("%s: %s; MLflow will know nothing of this run", run_dir / OUTBOX, error.strerror)
            tracker.uri, tracker._mirrors = None, Mirrors(run_dir, {})
            return tracker
        tracker._attach(live=True, system_metrics=config.system_metrics)
        atexit.register(tracker._at_exit)
        return tracker

    # -- while training --------------------------------------------------------

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of one step: microseconds, whatever MLflow does.

        Steps of a metric grow from call to call. Raises RunError where the run directory's disk refuses the
        record.
        """
        self.journal.append(step, metrics)
        if self._followed and time.monotonic() >= self._hear_due:
            self._hear()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file or folder with the run, as it is when its turn comes: leave it in place."""
        self._request("artifact", path=self._named(path), folder=folder)

    def tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        self._request("tag", key=key, value=redact_option(key, value))

    def params(self, params: Mapping[str, object]) -> None:
        """Set parameters that are known only now."""
        self._request("params", params={key: redact_option(key, str(value)) for key, value in params.items()})

    def log_input(
        self, name: str, source: str, digest: str, context: str, profile: Mapping[str, Any] | None = None
    ) -> None:
        """Name a data set of the run, where it comes from, and its digest (36 characters are kept).

        `context` is `train`, `val` or `test`; `profile` is anything worth knowing as JSON (images, classes,
        counts).
        """
        source = redact(source)
        self._request("input", name=name, source=source, digest=digest, context=context, profile=profile)

    def log_model(
        self,
        model_dir: Path,
        example: NDArray[Any],
        class_names: Sequence[str],
        *,
        step: int = 0,
        register: str | None = None,
    ) -> None:
        """Store an exported model with the run; `mlflow.pyfunc.load_model` loads it, without pickle.

        What it takes and gives is in `classifiers/pyfunc_model.py`. `model_dir` is a folder that `jaxtrain.load` reads,
        left in place until it was sent; `example` is one or a few images. `register`: also as the next version of
        the registered model of that name.
        """
        if example.dtype not in (np.uint8, np.uint16) or example.ndim != 4:
            raise ValueError(f"example: uint8[n, height, width, channels] expected, got {example.dtype}{example.shape}")
        if self.uri is None:
            return
        self._models = True
        example_path = self.run_dir.absolute() / "model_example.npy"
        np.save(example_path, example, allow_pickle=False)
        self._request(
            "model",
            path=self._named(model_dir),
            example=self._named(example_path),
            class_names=list(class_names),
            step=step,
            name="model",
            pip_requirements=default_requirements(),
            **({} if register is None else {"register": register}),
        )

    # -- the run in MLflow -----------------------------------------------------

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until MLflow has answered (see `wait_run_id`)."""
        return State.load(self.run_dir).run_id if self.uri else None

    def wait_model_id(self, timeout: float) -> str | None:
        """The id of the model that `log_model` stores, waited for likewise; None where none is stored."""
        if self.uri is not None and self._models:
            self._wait_for(
                lambda state: bool(state.model_id or state.requests_refused or state.problem or state.over), timeout
            )
        return stored_model(self.run_dir) if self.uri else None

    def wait_run_id(self, timeout: float) -> str | None:
        """The id of the run, waiting up to this many seconds for MLflow; None where it does not answer.

        Once MLflow is known to be away nothing is waited for.
        """
        if self.uri is not None:
            self._wait_for(lambda state: bool(state.run_id or state.problem or state.over), timeout)
        return self.run_id

    # -- the end ---------------------------------------------------------------

    def finish(self, status: Status, timeout: float = 30.0) -> TrackerReport:
        """Send what is left, set the run's status, and say what could not be sent. At most `timeout` seconds.

        A store that is known to be away is tried three times more; for one that does not answer all waits of the
        process together take no more than about 30 s, and Ctrl-C ends one. A second call returns the first one's
        report.
        """
        if self._finished is not None:
            return self._finished
        self.journal.close()
        if not self._followed:
            self._finished = TrackerReport(None, None, 0, None)
            return self._finished
        self._request("status", status=status, time_ms=_now_ms())
        self._end(timeout)
        atexit.unregister(self._at_exit)
        self._finished = self._report()
        return self._finished

    def resend(self, timeout: float) -> TrackerReport:
        """Have a run that has ended sent, as far as it is missing, within this many seconds.

        Raises UserError for one that goes on in this process.
        """
        self._patience, self._mirror_patience = (
            Patience(str(self.uri), timeout),
            Patience("", timeout, "the mirrors of the run"),
        )
        if self._key in sidecar().serves:
            raise UserError(f"{self.run_dir}: this run goes on in this very process; finish it first")
        try:
            with file_lock(self.run_dir / LOCK, timeout=min(timeout, 5.0)) if self.uri else contextlib.nullcontext():
                State.load(self.run_dir).save(self.run_dir)  # by which the other process answers
        except TimeoutError:
            self._problem = f"{self.run_dir} is being sent by another process"
            return self._report()
        except OSError as error:
            self._problem = f"{self.run_dir} cannot be sent: {reason(error)}"
            return self._report()
        self._attach(live=False, system_metrics=False)
        self._end(timeout)
        return self._report()

    def _end(self, timeout: float) -> None:
        """Have the sidecar finish this run, in a new one where it has died."""
        deadline = time.monotonic() + timeout
        for _ in range(2):
            if self._sidecar is None or not self._sidecar.alive:
                self._attach(**self._attachment)
            if self._sidecar is None:
                return
            left = min(deadline - time.monotonic(), self._patience.left())
            self._sidecar.send(do="finish", run_dir=self._key, timeout=max(left - 0.5, 0.0))
            over = self.uri is None or self._wait_for(lambda state: state.over, left).over
            over &= self._mirrors.wait(
                self._sidecar, max(deadline - time.monotonic(), 0.0), patient=self._mirror_patience
            )
            self._sidecar.serves.discard(self._key)
            if over or time.monotonic() >= deadline:
                return

    def _report(self) -> TrackerReport:
        over = self._hear(last=True).over
        lacking = self._mirrors.lacking
        if self.uri is None:
            return TrackerReport(None, None, 0, None, lacking)
        state = State.load(self.run_dir)
        sent = state.acknowledged if state.uri == self.uri else {}
        problem = self._problem or (None if over else "MLflow did not answer in time")
        return TrackerReport(self.uri, state.run_id, unsent_rows(self.run_dir, sent), problem, lacking)

    @property
    def _key(self) -> str:
        return str(self.run_dir.absolute())

    def _attach(self, **attachment: Any) -> None:
        self._attachment = attachment
        self._session, self._heard = uuid.uuid4().hex, 0
        try:
            self._sidecar = sidecar()
        except OSError as error:
            self._sidecar = None
            self._problem = f"cannot start the process that follows the run: {error}"
            _log.warning("%s; metrics are kept in %s", self._problem, self.journal.path)
            return
        self._sidecar.serves.add(self._key)
        told: dict[str, Any] = {"run_dir": self._key, "root": str(self._root.absolute()), "uri": self._secret_uri}
        told |= {"folder": os.getcwd(), "session": self._session, **self._mirrors.begin(self._session)}
        self._sidecar.attach(**told, **attachment)

    @property
    def _followed(self) -> bool:
        """Whether anything follows the run."""
        return self.uri is not None or bool(self._mirrors.names)

    def _hear(self, *, last: bool = False) -> State:
        """What the sidecar says of this tracker's run so far; what a person should know is logged, once."""
        self._hear_due = time.monotonic() + _HEAR_SECONDS
        self._mirrors.hear(last=last)
        state = State.load(self.run_dir)
        if state.session != self._session:
            return State()
        if state.run_id is not None and state.problem is None:
            self._patience.restore()
        for text in state.said[self._heard :]:
            _log.warning("MLflow: %s", text)
        self._heard = len(state.said)
        if state.problem is not None and self._problem is None:
            told = "MLflow: %s; metrics are kept in %s and sent when MLflow answers"
            _log.warning(told, state.problem, self.run_dir)
        elif state.problem is None and self._problem is not None:
            _log.info("MLflow answers again; every metric so far was sent")
        self._problem = state.problem
        return state

    def _wait_for(self, done: Callable[[State], bool], timeout: float) -> State:
        """What the sidecar says, as soon as it is `done`, the sidecar has died or nobody waits any longer."""

        def settled() -> bool:
            return done(self._hear()) or self._sidecar is None or not self._sidecar.alive

        self._patience.wait(settled, timeout)
        return self._hear()

    def _named(self, path: Path) -> str:
        """A path from the run directory on: that may be moved before it is sent."""
        return os.path.relpath(path, self.run_dir)

    def _request(self, what: str, **fields: Any) -> None:
        if self.uri is None and not (self._mirrors.names and what in ("params", "status")):
            return
        try:
            append_request(self.run_dir, {"do": what, **fields})
        except OSError as error:
            _log.warning("%s: %s", self.run_dir / OUTBOX, error.strerror)

    def _at_exit(self) -> None:
        """The program ends without a word about the run: it did not go well."""
        self.finish("FAILED", timeout=5.0)


def stored_model(run_dir: Path) -> str | None:
    """The id of the model that a run stored in MLflow, as far as its directory knows."""
    return State.load(run_dir).model_id


def stored_run(run_dir: Path) -> str | None:
    """The id of a run in MLflow, likewise."""
    return State.load(run_dir).run_id


def look(uri: str) -> str:
    """The command or address that shows what is in a store, without its password."""
    uri = redact(uri)
    if uri.startswith(("http://", "https://")):
        return uri
    if (file := database_file(uri)) is not None and file.is_relative_to(Path.cwd()):
        uri = sqlite_uri(file.relative_to(Path.cwd()))
    return f"mlflow server --backend-store-uri {shlex.quote(uri)}"


def _now_ms() -> int:
    return int(time.time() * 1000)


__all__ = ["Status", "Tracker", "TrackerReport", "look"]
