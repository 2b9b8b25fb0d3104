"""What runs on the nodes of a cluster: this program again, in the driver's folder, for as long as its task lives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from jaxtrain.errors import UserError
from jaxtrain.files import write_text
from jaxtrain.version import __version__

_END_SECONDS, _POLL_SECONDS = 20.0, 0.2
_TAIL_BYTES = 4000
_MARK = "cluster.mark"
_GPU_SHARE = 0.9


@dataclass(frozen=True)
class Job:
    """One command for a node. It holds no environment: nodes have their own, and secrets stay where they are."""

    words: tuple[str, ...]
    """What follows `jaxtrain`."""
    folder: str
    """The driver's working directory."""
    shared: str
    """A folder that the node has to see too."""
    mark: str
    """What the driver wrote there."""
    umask: int
    gpu: float
    versions: tuple[str, str]


@dataclass(frozen=True)
class Ended:
    """How the command ended on its node."""

    code: int
    words: str
    """The last line of its standard error."""
    host: str


def job(words: tuple[str, ...], shared: Path, gpu: float) -> Job:
    """A command, as this process would run it here."""
    mark = uuid.uuid4().hex
    write_text(shared / _MARK, mark)
    os.umask(umask := os.umask(0o077))
    return Job(words, os.getcwd(), str(shared), mark, umask, gpu, versions())


def carry_out(job: Job) -> Ended:
    """Run it here. Where this task is cancelled or killed, the command saves and stops, as after a SIGTERM."""
    host = socket.gethostname()
    if problem := _problem(job):
        return Ended(2, problem, host)
    environment = {**memory_of(job.gpu), **os.environ}
    command = [sys.executable, "-m", "jaxtrain", *job.words]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=job.folder, env=environment, umask=job.umask, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
        assert process.stdin is not None
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
        finally:
            process.stdin.close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        errors.seek(max(errors.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        lines = errors.read().decode(errors="replace").strip().splitlines()
    return Ended(process.returncode, lines[-1].removeprefix("error: ") if lines else "", host)


def address() -> str:
    """HOST:PORT of this node, with a port that is free now."""
    import ray

    host = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return f"{host}:{probe.getsockname()[1]}"


def _problem(job: Job) -> str | None:
    """Why a job cannot run here, if it cannot."""
    if problem := differs(job.versions):
        return problem
    try:
        mark = (Path(job.shared) / _MARK).read_text(encoding="utf-8")
    except OSError:
        mark = ""
    if mark != job.mark:
        return f"{job.shared} is not there as the driver sees it: all nodes need one file system in common"
    return None


def memory_of(gpu: float) -> dict[str, str]:
    """Variables of a process that has a share of a GPU, of which JAX would take three quarters for each."""
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{_GPU_SHARE * gpu:.3f}"} if 0 < gpu < 1 else {}


@dataclass(frozen=True)
class Place:
    """Where a worker that stays works: in the driver's folder, with its versions and a share of a GPU."""

    folder: str
    versions: tuple[str, str]
    gpu: float

    @classmethod
    def here(cls, gpu: float) -> Place:
        """The driver's."""
        return cls(os.getcwd(), versions(), gpu)

    def enter(self) -> None:
        """Make this process one of the driver's workers, before JAX looks for devices. Raises UserError."""
        os.environ.update({**memory_of(self.gpu), **os.environ})
        if problem := differs(self.versions):
            raise UserError(problem)
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise UserError(f"{self.folder}: {error.strerror}; all nodes need one file system in common") from error


def versions() -> tuple[str, str]:
    """Of what has to be the same on all nodes: jaxtrain and jax."""
    return __version__, version("jax")


def differs(wanted: tuple[str, str]) -> str | None:
    """What is installed here and should not be, if anything."""
    for name, here, there in zip(("jaxtrain", "jax"), versions(), wanted, strict=True):
        if here != there:
            return f"{name} {here} is installed there, and {there} where the command was started"
    return None
