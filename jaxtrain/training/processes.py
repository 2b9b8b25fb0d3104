"""Several processes as one run, on one host or many.

All of them run the same program, so that every collective operation finds its partners; process 0 alone owns the run
directory, MLflow and the screen. What only it can know it tells the others through the key-value store of JAX's
distributed runtime. A process that fails tells the others, and all end.

In one process everything here is a plain call.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from jaxtrain.config_io import explain
from jaxtrain.errors import JaxtrainError, RunError, UserError
from jaxtrain.training.signals import Interrupted, StopRequest

if TYPE_CHECKING:
    from jaxtrain.config import ParallelConfig
    from jaxtrain.training.state import Tree

HEARTBEAT_SECONDS = 100
"""After how long without a sign of life a process counts as dead, which ends the others."""
_GRACE_SECONDS = 5.0  # for a process to end by itself after another one failed, before it is ended
_LAST_SECONDS = 120.0  # for its last words to MLflow
_LEAVING_SECONDS, _SAVING_SECONDS = 60.0, 600.0  # for process 0 to come to its end, after an error or a last save
_POLL_SECONDS = 0.5
_CHUNK_BYTES = 1 << 24

_LAUNCHERS = {"Slurm": "SLURM_STEP_NUM_TASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
"""The variable in which a launcher says how many processes it started."""
_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


@dataclass(frozen=True)
class Ending:
    """Why a process ended before its time."""

    process: int
    code: int
    message: str

    def error(self) -> JaxtrainError:
        """What the other processes raise."""
        text = f"process {self.process}: {self.message}"
        if self.code > 128:
            return Interrupted(self.code - 128, text)
        return UserError(text) if self.code == UserError.exit_code else RunError(text)


# --- starting -------------------------------------------------------------------------------------


def start(config: ParallelConfig) -> None:
    """Join the other processes, where the options or the cluster's environment tell of some.

    Call it before the first use of a device. Raises UserError where JAX runs already or cannot find the others; ends
    the process with one line where they do not come in time (JAX's runtime leaves no other way).
    """
    cluster = None if config.coordinator else cluster_of(os.environ)
    if config.num_processes is None and cluster is None:
        config = _of_environment(config, os.environ)
    if config.num_processes != 1 and (config.coordinator or cluster) and _client() is None:
        named = config.coordinator or os.environ.get(_VARIABLES["coordinator"])
        where = f"coordinator {named}" if named else f"as {cluster} started them"
        seconds = config.connect_seconds
        text = (
            f"the processes of this run did not find one another ({where}) within {seconds} s: is the address that of "
            "process 0, is its port open, do all run? (--parallel.connect_seconds waits longer)"
        )
        with _impatient(text, seconds):
            _initialize(config, cluster)
    if not primary():
        import logging

        logging.getLogger("jaxtrain").setLevel(logging.ERROR)


def cluster_of(environment: Any) -> str | None:
    """The launcher that started several processes, as the environment tells; None on a plain machine."""
    for name, variable in _LAUNCHERS.items():
        if environment.get(variable, "").isdigit() and int(environment[variable]) > 1:
            return name
    if "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        return "Cloud TPU"
    devices = Path("/dev/accel0"), Path("/dev/vfio/0")
    if any(path.exists() for path in devices) and importlib.util.find_spec("libtpu") is not None:
        return "Cloud TPU"
    if "JOB_COMPLETION_INDEX" in environment and importlib.util.find_spec("kubernetes") is not None:
        return "Kubernetes"
    return None


def _of_environment(config: ParallelConfig, environment: Any) -> ParallelConfig:
    """With the processes that JAX's own variables name, where the options and the launcher say nothing.

    Raises UserError where only some of the variables are there, or one is wrong.
    """
    given = {field: environment.get(name) for field, name in _VARIABLES.items()}
    if not given["coordinator"]:
        return config
    if missing := next((_VARIABLES[field] for field, value in given.items() if not value), None):
        raise UserError(f"{missing} is missing: {', '.join(_VARIABLES.values())} go together")
    try:
        return type(config).model_validate({**config.model_dump(), **given})
    except ValidationError as error:
        raise UserError(explain(error, ", ".join(_VARIABLES.values()))) from None


def gpus_of_the_node(environment: Any) -> list[int] | None:
    """All of them, where Slurm started one process a node: JAX would give it the first alone. None: as JAX has it."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    alone = bool(tasks) and all(part.partition("(")[0] == "1" for part in tasks.split(","))
    return list(range(int(gpus))) if alone and gpus.isdigit() and int(gpus) > 1 else None


def _initialize(config: ParallelConfig, cluster: str | None) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            local_device_ids=None if config.coordinator else gpus_of_the_node(os.environ),
            initialization_timeout=config.connect_seconds + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            cluster_detection_method="deactivate" if config.coordinator else None,
        )
        jax.local_devices()  # the processes tell one another of theirs
    except (RuntimeError, ValueError, OSError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        if "must be called before" in first:
            first = "JAX is in use already: start the run before the first computation"
        hint = f"{cluster} started them; or give --parallel.num_processes 1 to run alone" if cluster else ""
        raise UserError(
            f"parallel.coordinator: processes could not be joined{f' ({hint})' if hint else ''}: {first}"
        ) from error


@contextlib.contextmanager
def _impatient(text: str, seconds: float) -> Iterator[None]:
    """Ends the process when the body takes too long: JAX's runtime would abort it with a stack trace."""

    def give_up() -> None:
        os.write(2, f"error: {text}\n".encode())
        os._exit(RunError.exit_code)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# --- who we are -----------------------------------------------------------------------------------


def count() -> int:
    """Processes of this run."""
    return _state().num_processes if _client() is not None else 1


def index() -> int:
    """The number of this process; 0 owns the run directory."""
    return _state().process_id if _client() is not None else 0


def primary() -> bool:
    """Whether this process owns the run directory, MLflow and the screen."""
    return index() == 0


def _state() -> Any:
    from jax._src import distributed  # the key-value store has no public name

    return distributed.global_state


def _client() -> Any:
    """The connection to the others; None where there are none. Costs nothing where JAX is not imported."""
    return _state().client if "jax" in sys.modules else None


# --- what process 0 tells -------------------------------------------------------------------------

_told = 0  # how many decisions were made: all processes make the same ones in the same order


def decided(function: Callable[[], Any]) -> Any:
    """`function()` as process 0 computes it, in all processes; a JSON value. Its JaxtrainError is raised in all."""
    global _told
    if count() == 1:
        return function()
    _told += 1
    key = f"jaxtrain/decided/{_told}"
    if primary():
        try:
            value = function()
        except JaxtrainError as error:
            _client().key_value_set(key, json.dumps({"error": [error.exit_code, str(error)]}))
            raise
        _client().key_value_set(key, json.dumps({"value": value}))
        if _told > 1000:  # long read by all
            _client().key_value_delete(f"jaxtrain/decided/{_told - 1000}")
        return value
    answer = json.loads(_wait_for(key))
    if "error" in answer:
        raise Ending(0, *answer["error"]).error()
    return answer["value"]


def _wait_for(key: str) -> str:
    """The value of a key, once it is there. Raises what ended another process in the meantime."""
    import jax

    while True:
        try:
            return _client().blocking_key_value_get(key, 2000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        check()


def shared(tree: Tree | None) -> Tree:
    """Arrays of process 0 (nested dicts, keys are strings) in all processes, bit for bit; the others give None."""
    if count() == 1:
        assert tree is not None
        return tree
    import jax
    import numpy as np

    def describe() -> Any:
        return jax.tree.map(lambda leaf: [leaf.dtype.name, list(leaf.shape)], tree)

    outline = decided(describe)
    described, structure = jax.tree.flatten(outline, is_leaf=lambda node: isinstance(node, list))
    leaves = [None] * len(described) if tree is None else jax.tree.leaves(tree)
    result = []
    for leaf, (dtype, shape) in zip(leaves, described, strict=True):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        data = None if leaf is None else np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        result.append(_broadcast(data, size).view(np.dtype(dtype)).reshape(shape))
    return jax.tree.unflatten(structure, result)


def _broadcast(data: Any, size: int) -> Any:
    """`uint8[size]` of process 0, in chunks of few different lengths, for each is compiled."""
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    parts = []
    for start in range(0, size, _CHUNK_BYTES):
        length = min(size - start, _CHUNK_BYTES)
        chunk = np.zeros(1 << max(length - 1, 1023).bit_length(), np.uint8)
        if data is not None:
            chunk[:length] = data[start : start + length]
        parts.append(np.asarray(broadcast_one_to_all(chunk.view(np.uint32))).view(np.uint8)[:length])
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


# --- signals --------------------------------------------------------------------------------------


def tell_signal(number: int) -> None:
    """Let process 0 know of a signal that came here."""
    if count() > 1:
        with contextlib.suppress(Exception):  # told before
            _client().key_value_set(f"jaxtrain/signal/{index()}", str(number))


def signal_told() -> int | None:
    """In process 0: a signal that came to another process, if any."""
    if count() == 1:
        return None
    return next((int(number) for _, number in _client().key_value_dir_get("jaxtrain/signal/")), None)


# --- when one fails -------------------------------------------------------------------------------


_ENDED = "jaxtrain/ended/"


class _Watch:
    """Looks now and then whether another process has ended; a thread, for the main one may hang in a collective."""

    def __init__(self) -> None:
        self.ending: Ending | None = None
        self.noticed = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="other-processes", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(5.0)

    def find(self) -> Ending | None:
        """The first process that ended, if one did."""
        if self.ending is None:
            with contextlib.suppress(Exception):
                told = [(int(key.rpartition("/")[2]), text) for key, text in _client().key_value_dir_get(_ENDED)]
                others = sorted((json.loads(text), process) for process, text in told if process != index())
                if others:
                    (_, code, message), process = others[0]
                    self.ending = Ending(process, code, message)
        return self.ending

    def _look(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            if self.find() is None:
                continue
            # What noticed it is on its way out, and may have something to save; the rest may wait for ever.
            if not self._over.wait(_GRACE_SECONDS) and not (self.noticed.is_set() and self._over.wait(_LAST_SECONDS)):
                assert self.ending is not None
                os.write(2, f"error: {self.ending.error()}\n".encode())
                leave(self.ending.code)
            return


_watch: _Watch | None = None


def check() -> None:
    """Raises what ended another process, if one has failed or was interrupted alone."""
    if _watch is not None and (ending := _watch.ending) is not None:
        _watch.noticed.set()
        raise ending.error()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around a run: where one process fails, the others end too, saying why."""
    global _watch
    if count() == 1 or _watch is not None:
        yield
        return
    watch = _watch = _Watch()
    try:
        with StopRequest() as stop:  # nobody leaves at once: the others would wait for it
            stop.unsaved(True)
            yield
    except BaseException as error:
        if getattr(error, "agreed", False):
            raise
        if watch.find() is None:
            time.sleep(_POLL_SECONDS)  # ours may be but the consequence of another's
        if (ending := watch.find()) is not None:
            raise ending.error() from error
        told = [time.time(), getattr(error, "exit_code", RunError.exit_code), str(error) or type(error).__name__]
        with contextlib.suppress(Exception):
            _client().key_value_set(f"{_ENDED}{index()}", json.dumps(told))
        raise
    finally:
        _watch = None
        watch.stop()


def leave(code: int) -> None:
    """End this process after a failure, where it is one of several: at a normal exit JAX would wait for the others.

    Process 0 goes last, for the connection of all others ends with it. In one process nothing happens.
    """
    if count() == 1:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(Exception):
        _client().key_value_set(f"jaxtrain/leaving/{index()}", "")
        if primary():
            _until(lambda: len(_client().key_value_dir_get("jaxtrain/leaving/")) == count(), 4 * _GRACE_SECONDS)
            time.sleep(_POLL_SECONDS)
        else:
            patience = _SAVING_SECONDS if code > 128 else _LEAVING_SECONDS
            _until(
                lambda: any(key.endswith("/0") for key, _ in _client().key_value_dir_get("jaxtrain/leaving/")), patience
            )
    os._exit(code)


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS / 5)
