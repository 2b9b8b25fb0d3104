"""More processes of the same sweep on this machine: XLA runs the convolutions of a small CNN on one core each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from jaxtrain.sweeps.plan import Plan, together

_END_SECONDS = 60.0


def process_count(plan: Plan) -> int:
    """Processes that share the sweep: as its file says, else on CPU one a core for training from scratch.

    Fine-tuning keeps all cores busy with one run, and an accelerator belongs to one process.
    """
    sweep = plan.sweep
    if sweep.workers is not None:
        return sweep.workers
    techniques = {run.setting.config.technique for run in plan.runs}
    if jax.default_backend() != "cpu" or techniques != {"pt"} or together(sweep, "pt"):
        return 1
    runs = (sweep.budget.trials or 1) if sweep.combine == "tpe" else len(plan.runs)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(cores // (sweep.base.parallel.cpu_devices or 1), runs // 2), 1)


@contextmanager
def helpers(plan: Plan, *, quiet: bool) -> Iterator[None]:
    """While entered, the other processes are at work; on leaving early they are asked to save and stop."""
    command = [sys.executable, "-m", "jaxtrain", "sweep", str(plan.source.absolute()), "--helper"]
    command += ["--quiet"] if quiet else []
    started = [subprocess.Popen(command) for _ in range(process_count(plan) - 1)]
    try:
        yield
    except BaseException:
        for process in started:
            process.send_signal(signal.SIGTERM)
        raise
    finally:
        for process in started:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def parent_lives() -> Callable[[], bool]:
    """Says, in a helper, whether the process that started it is still there."""
    parent = os.getppid()
    return lambda: os.getppid() == parent
