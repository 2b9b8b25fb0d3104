"""More processes of the same sweep on this machine: XLA runs the convolutions of a small CNN on one core each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
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
    """While entered, the other processes are at work; on leaving early they save and stop, as they do when we die.

    A terminal's signals are for this process alone; each helper reads its standard input to hear of its end.
    """
    command = [sys.executable, "-m", "jaxtrain", "sweep", str(plan.source.absolute()), "--helper"]
    command += ["--quiet"] if quiet else []
    count = process_count(plan) - 1
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) for _ in range(count)]
    try:
        yield
    except BaseException:
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
        raise
    finally:
        for process in started:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
