"""The sweep's own run in MLflow, under which those of its settings stand; one worker at a time keeps it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtrain.files import try_lock
from jaxtrain.sweeps.settings import shown
from jaxtrain.tracking import Tracker
from jaxtrain.tracking.store import tracking_uri

if TYPE_CHECKING:
    from jaxtrain.sweeps.plan import Plan
    from jaxtrain.tracking import Tracker

_POLL_SECONDS = 0.5


class Parent:
    """The parent run. The worker that holds its lock is the chief: it keeps the run and writes the results."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._folder = plan.sweep.folder / "tracking"
        self._lock: int | None = None
        self._tracker: Tracker | None = None

    def lead(self) -> bool:
        """Whether this worker is the chief, from now on or already."""
        if self._lock is None:
            self._lock = try_lock(self._plan.sweep.folder / "chief.lock")
            if self._lock is not None:
                self._tracker = self._start()
        return self._lock is not None

    def tags(self, wait: float) -> dict[str, str]:
        """Of each run of the sweep; waits up to this many seconds for the id of the parent."""
        found = {"sweep": self._plan.sweep.name}
        run_id = self._run_id(wait)
        return found | ({"mlflow.parentRunId": run_id} if run_id else {})

    def finish(
        self, files: Sequence[Path], metrics: Mapping[str, float], tags: Mapping[str, str], *, complete: bool
    ) -> str | None:
        """Store the results and end the run; what MLflow did not get, in one line."""
        assert self._tracker is not None
        if metrics:
            self._tracker.log(0, metrics)
        for path in files:
            self._tracker.artifact(path)
        for key, value in tags.items():
            self._tracker.tag(key, value)
        return self._tracker.finish("FINISHED" if complete else "KILLED").problem

    def close(self) -> None:
        """Give the lead away; a run that is not finished was stopped."""
        if self._tracker is not None:
            self._tracker.finish("KILLED")
        if self._lock is not None:
            os.close(self._lock)
        self._lock = self._tracker = None

    def _start(self) -> Tracker:
        sweep = self._plan.sweep
        values = {
            axis.name.replace(", ", "-"): str(axis.range or [shown(row) for row in axis.values])
            for axis in self._plan.axes
        }
        return Tracker.start(
            sweep.base.tracking.model_copy(update={"system_metrics": False}),
            run_dir=self._folder,
            root=sweep.folder,
            experiment=self._plan.runs[0].setting.config.technique.upper(),
            run_name=sweep.name,
            params={
                "combine": sweep.combine,
                "objective": sweep.objective,
                "seeds": list(sweep.seeds),
                **values,
            },
            tags={"kind": "sweep", "sweep": sweep.name, "run_dir": str(sweep.folder)},
        )

    def _run_id(self, wait: float) -> str | None:
        if self._tracker is not None:
            return self._tracker.wait_run_id(wait) if wait else self._tracker.run_id
        tracking = self._plan.sweep.base.tracking
        if not tracking.enabled:
            return None
        kept = Tracker(self._folder, tracking_uri(tracking.uri))  # another worker's
        deadline = time.monotonic() + wait
        while (run_id := kept.run_id) is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return run_id
