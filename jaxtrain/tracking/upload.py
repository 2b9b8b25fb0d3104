"""One run directory's way into MLflow: reads the journal and the outbox, sends what MLflow does not have yet.

Any call may fail and be made again. Each point (metric, step) arrives exactly once: steps of a metric only
grow, points are sent in order and a batch is stored whole or not at all, so the last step that MLflow has of
each metric says what is missing. After a failure whose outcome is unknown, and at every start, MLflow is
asked for it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from jaxtrain.redact import redact
from jaxtrain.tracking import store
from jaxtrain.tracking.journal import complete_lines, decode_record
from jaxtrain.tracking.model import store_model
from jaxtrain.tracking.outbox import JOURNAL, State, of_run, read_requests
from jaxtrain.tracking.points import Point, cut, finite_points, safe_name, time_ms
from jaxtrain.tracking.provenance import PROCESS_TAG, process_is_gone

METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
LONGEST_PARAM = 6000
LONGEST_TAG = 5000
LONGEST_DIGEST = 36
NONFINITE = "nonfinite_count"
RUN_KEY_TAG = "jaxtrain.run_key"

_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}
_ATTEMPTS_PER_REQUEST = 3
_MOST_SAMPLES = 5000
_MOST_SAID = 100


class Upload:
    """One run's upload. The caller holds the directory's lock: one process at a time.

    `live`: the run goes on, in another process; otherwise a run that has ended is sent later. Only files inside `root`
    (default: the run directory) are sent. `session` is for whom `mlflow.json` is written, `git` are tags that name
    the code.
    """

    def __init__(
        self,
        run_dir: Path,
        uri: str,
        *,
        live: bool,
        root: Path | None = None,
        session: str = "",
        git: Mapping[str, str] | None = None,
    ) -> None:
        self.run_dir, self.uri, self.live = run_dir, uri, live
        self._root = root or run_dir
        self.state = State.load(run_dir)
        self.state.session, self.state.problem, self.state.said, self.state.over = session, None, [], False
        if live:
            self.state.git = dict(git or {})
        self._client: Any = None
        self._certain = False
        self._welcomed = False
        self._journal: BinaryIO | None = None
        self._offset = 0
        self._nonfinite = 0
        self._attempts = 0
        self._samples: list[tuple[int, Mapping[str, float]]] = []
        self._sample_base: int | None = None
        self._of_model: dict[str, str] = {}
        self._params: dict[str, str] = {}

    def push(self) -> None:
        """Send everything that the run directory holds now.

        Raises whatever stood in the way; call again later.
        """
        try:
            requests = read_requests(self.run_dir)
            if not self._certain:
                self._connect(requests)
                self._certain = True
            self._send_journal()
            self._send_samples()
            self._send_requests(requests)
        except BaseException:
            self._certain = False
            raise

    def end(self, status: str, end_time_ms: int | None = None) -> None:
        """Set the run's final status."""
        self._client.set_terminated(self.state.run_id, status, end_time_ms or int(time.time() * 1000))
        self.state.status = status
        self._save()

    def end_if_dead(self) -> None:
        """KILLED for a run that no longer has a process and never said how it ended."""
        if self.state.status == "RUNNING" and process_is_gone(self.state.process):
            self.end("KILLED")

    def add_sample(self, values: Mapping[str, float]) -> None:
        """Queue a sample of system metrics; they are kept in memory only."""
        if len(self._samples) < _MOST_SAMPLES:
            self._samples.append((int(time.time() * 1000), values))

    def say(self, text: str) -> None:
        """Keep a line for a person."""
        if len(self.state.said) < _MOST_SAID:
            self.state.said.append(text)
            self._save()

    def report(self, problem: str | None, *, over: bool = False) -> None:
        """Keep why MLflow lacks something now, and whether nothing more is tried."""
        self.state.problem, self.state.over = problem, over
        self._save()

    # -- connecting ------------------------------------------------------------

    def _connect(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """Find or create the run, and learn what MLflow has of it."""
        start = next((r for r in reversed(requests) if r.get("do") == "start"), None)
        if start is None:
            raise store.StoreError(f"{self.run_dir} holds no run for MLflow")
        if self._client is None:
            self._client = store.connect(self.uri)
            if self.state.uri != redact(self.uri):
                self.state.forget()
                self.state.uri = redact(self.uri)
        # Known from the outbox also where MLflow was never reached while the process lived.
        self.state.process = start.get("process") or self.state.process
        self.state.experiment = start["experiment"]
        self.state.experiment_id = store.experiment_id(self._client, self.uri, start["experiment"])
        first = next(r for r in requests if r.get("do") == "start")
        run = self._find_run(first["run_key"])
        own = {PROCESS_TAG: self.state.process, RUN_KEY_TAG: first["run_key"]}
        tags = {**start["tags"], **self.state.git, **own}
        tags = {safe_name(key): cut(value, LONGEST_TAG) for key, value in tags.items() if value}
        if run is None:
            # A run that is sent after its end starts with its true time as well.
            created = self._client.create_run(self.state.experiment_id, first["time_ms"], tags, start["run_name"])
            run = self._client.get_run(created.info.run_id)
        self.state.run_id = run.info.run_id
        self.state.acknowledged = {metric.key: metric.step for metric in run.data._metric_objs}
        self.state.status = run.info.status
        if not self._welcomed:
            self._log_params(start["params"], run.data.params)
            self._of_model = self._measured(run, start.get("model"))
            if self.live:
                self._set_running(run, tags, attempts=sum(r.get("do") == "start" for r in requests))
                store.close_stale_runs(self._client, self.state.experiment_id, keep=self.state.run_id)
            self._welcomed = True
        if self._sample_base is None:
            steps = [step for key, step in self.state.acknowledged.items() if key.startswith("system/")]
            self._sample_base = max(steps, default=-1) + 1
        self._save()

    def _find_run(self, run_key: str) -> Any:
        """This directory's run in MLflow, or None where it is not there (any more).

        The key finds it where `mlflow.json` was lost, or the answer when the run was created.
        """
        from mlflow.exceptions import MlflowException

        if self.state.run_id is not None:
            try:
                run = self._client.get_run(self.state.run_id)
                # A file that names the run of someone else does not get at it.
                if run.info.lifecycle_stage == "active" and run.data.tags.get(RUN_KEY_TAG) == run_key:
                    return run
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            deleted = self.state.run_id
            self.state.forget()
            self._offset = self._nonfinite = 0
            self._welcomed = False
            self.say(f"the MLflow run {deleted} was deleted or is another one: sending everything again as a new run")
        found = self._client.search_runs([self.state.experiment_id], f"tags.`{RUN_KEY_TAG}` = '{run_key}'")
        return self._client.get_run(found[0].info.run_id) if found else None

    def _measured(self, run: Any, model: Mapping[str, str] | None) -> dict[str, str]:
        """The model of another run that this one measures, as each metric names it; it becomes an input of the run."""
        from mlflow.entities import LoggedModelInput
        from mlflow.exceptions import MlflowException

        if model is None:
            return {}
        try:
            self._client.get_logged_model(model["model_id"])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        if model["model_id"] not in [one.model_id for one in (run.inputs.model_inputs if run.inputs else ())]:
            self._client.log_inputs(self.state.run_id, models=[LoggedModelInput(model["model_id"])])
        return {**model, "dataset_digest": model["dataset_digest"][:LONGEST_DIGEST]}

    def _log_params(self, params: Mapping[str, str], known: Mapping[str, str]) -> None:
        """Parameters are immutable in MLflow: new ones are added, changed ones are kept in a tag."""
        from mlflow.entities import Param

        wanted = {safe_name(key): cut(value, LONGEST_PARAM) for key, value in params.items()}
        self._params |= wanted
        missing = [Param(key, value) for key, value in wanted.items() if key not in known]
        for i in range(0, len(missing), PARAMS_PER_BATCH):
            self._client.log_batch(self.state.run_id, params=missing[i : i + PARAMS_PER_BATCH], synchronous=True)
        drift = {key: [known[key], value] for key, value in wanted.items() if known.get(key, value) != value}
        if drift:
            text = cut(json.dumps(drift, ensure_ascii=False), LONGEST_TAG)
            self._client.set_tag(self.state.run_id, "jaxtrain.param_drift", text)

    def _set_running(self, run: Any, tags: Mapping[str, str], attempts: int) -> None:
        from mlflow.entities import RunTag

        tags = {**tags, "jaxtrain.attempts": str(attempts)}
        changed = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
        for i in range(0, len(changed), PARAMS_PER_BATCH):
            self._client.log_batch(self.state.run_id, tags=changed[i : i + PARAMS_PER_BATCH], synchronous=True)
        # After the process tag, so that nobody takes the resumed run for a dead one.
        if run.info.status != "RUNNING":
            self._client.update_run(self.state.run_id, status="RUNNING")
        self.state.status = "RUNNING"

    # -- sending ---------------------------------------------------------------

    def _send_journal(self) -> None:
        file = self._open_journal()
        if file is None:
            return
        offset, nonfinite, points = self._offset, self._nonfinite, list[Point]()
        latest = dict(self.state.acknowledged)

        def add(point: Point) -> None:
            if point.step > latest.get(point.key, -1):
                latest[point.key] = point.step
                points.append(point)

        def flush() -> None:
            self._log_metrics(points)
            points.clear()
            self._offset, self._nonfinite = offset, nonfinite

        file.seek(offset)
        for line in complete_lines(file):
            offset += len(line)
            record = decode_record(line)
            if record is None:
                continue
            finite = list(finite_points(record))
            for point in finite:
                add(point)
            bad = sum(key not in ("step", "time") for key in record) - len(finite)
            if bad:
                nonfinite += bad
                add(Point(NONFINITE, nonfinite, time_ms(record), record["step"]))
            if len(points) >= METRICS_PER_BATCH // 2:
                flush()
        flush()

    def _open_journal(self) -> BinaryIO | None:
        """The journal, from its start where a resumed training process has replaced it since the last push.

        It stays open: so the replacement cannot have the same inode.
        """
        path = self.run_dir / JOURNAL
        if not path.exists():
            return None
        if self._journal is None or os.fstat(self._journal.fileno()).st_ino != path.stat().st_ino:
            self._journal = open(path, "rb")  # noqa: SIM115
            self._offset = self._nonfinite = 0
        return self._journal

    def _send_samples(self) -> None:
        assert self._sample_base is not None
        sent = len(self._samples)
        points = [
            Point(key, value, time_ms, self._sample_base + i)
            for i, (time_ms, values) in enumerate(self._samples)
            for key, value in values.items()
        ]
        self._log_metrics([point for point in points if self._is_new(point)])
        del self._samples[:sent]
        self._sample_base += sent

    def _log_metrics(self, points: Sequence[Point]) -> None:
        for i in range(0, len(points), METRICS_PER_BATCH):
            batch = points[i : i + METRICS_PER_BATCH]
            self._log_batch(batch)
            for point in batch:
                self.state.acknowledged[point.key] = point.step
            self._save()

    def _log_batch(self, points: Sequence[Point]) -> None:
        """Send one batch; where MLflow refuses its content, find the point at fault and leave it out."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        named = {} if not self._of_model else {**self._of_model, "run_id": self.state.run_id}
        metrics = [Metric(point.key, point.value, point.time_ms, point.step, **named) for point in points]
        try:
            self._client.log_batch(self.state.run_id, metrics=metrics, synchronous=True)
        except MlflowException as error:
            if error.error_code not in _REFUSALS:
                raise
            if len(points) == 1:
                key, step = points[0].key, points[0].step
                self.say(f"MLflow refuses the metric {key!r} at step {step}: {_first_line(error)}")
                return
            middle = len(points) // 2
            self._log_batch(points[:middle])
            self._log_batch(points[middle:])

    def _send_requests(self, requests: Sequence[Mapping[str, Any]]) -> None:
        last_start = max(i for i, request in enumerate(requests) if request.get("do") == "start")
        retried = [] if self.live else [i for i in self.state.requests_refused if i < len(requests)]
        for number in [*retried, *range(self.state.requests_done, len(requests))]:
            request = requests[number]
            if request.get("do") == "status" and number < last_start:
                continue  # of an earlier attempt
            if self._perform(request):
                self.state.requests_refused = [i for i in self.state.requests_refused if i != number]
            elif number not in self.state.requests_refused:
                self.state.requests_refused.append(number)
            self.state.requests_done = max(self.state.requests_done, number + 1)
            self._attempts = 0
            self._save()

    def _perform(self, request: Mapping[str, Any]) -> bool:
        """Carry out one request.

        False where it can never succeed or failed too often while metrics went through.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._carry_out(request)
        except Exception as error:
            self._attempts += 1
            refused = isinstance(error, MlflowException) and error.error_code in _REFUSALS
            if (
                not (refused or isinstance(error, FileNotFoundError | PermissionError))
                and self._attempts < _ATTEMPTS_PER_REQUEST
            ):
                raise
            what = request.get("path") or request.get("name") or request.get("key") or ""
            self.say(f"MLflow did not take the {request.get('do')} {what}: {_first_line(error)}")
            return False
        return True

    def _carry_out(self, request: Mapping[str, Any]) -> None:
        """`start` is seen to when connecting; a damaged line asks for nothing."""
        run_id = self.state.run_id
        match request.get("do"):
            case "artifact":
                self._client.log_artifact(run_id, self._file(request["path"]), request["folder"])
            case "tag":
                self._client.set_tag(run_id, safe_name(request["key"]), cut(request["value"], LONGEST_TAG))
            case "params":
                self._log_params(request["params"], self._client.get_run(run_id).data.params)
            case "input":
                self._client.log_inputs(run_id, [_dataset_input(request)])
            case "model":
                assert run_id is not None
                state = self.state
                files = {key: self._file(request[key]) for key in ("path", "example")}
                request = {**request, **files, "params": self._params}
                store_model(self._client, state.experiment_id, run_id, request, state.model_id, self._model_created)
            case "status":
                self.end(request["status"], request["time_ms"])

    def _file(self, named: str) -> str:
        return str(of_run(self._root, self.run_dir, named))

    def _model_created(self, model_id: str) -> None:
        self.state.model_id = model_id
        self._save()

    def _is_new(self, point: Point) -> bool:
        return point.step > self.state.acknowledged.get(point.key, -1)

    def _save(self) -> None:
        self.state.save(self.run_dir)


def _dataset_input(request: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=cut(request["name"], 500),
        digest=request["digest"][:LONGEST_DIGEST],
        source_type="local",
        source=json.dumps({"uri": request["source"]}),
        profile=json.dumps(request["profile"]) if request["profile"] else None,
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", request["context"])])


def _first_line(error: Exception) -> str:
    return redact(str(error).strip().partition("\n")[0])[:300]
