"""A connection to a cluster of Ray: what its nodes have, and tasks on them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any
from urllib.request import getproxies

from jaxtrain.errors import RunError, UserError
from jaxtrain.files import reason

_CANCEL_SECONDS, _REACH_SECONDS = 25.0, 10.0
_NAMES = {"cpu": "CPU", "gpu": "GPU", "tpu": "TPU"}
"""What Ray calls its resources; any other name is one that the cluster's owner gave."""

_CANNOT_IMPORT = "failed to import on the worker|Failed to unpickle|No module named|Can't get attribute"
"""What Ray says where a node lacks a module: it has no kind of error for that."""

_AT_ITS_START = "an error raised in its creation task"
"""Likewise of an object that could not be made: the next one could not either."""


class Lost(Exception):  # noqa: N818  (not a failure of the task)
    """A task that ended with its node or its process."""


class Session:
    """Ray, connected: made by `connected`."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def room(self, need: Mapping[str, float]) -> int:
        """How many tasks with such needs the nodes can have at once."""
        return sum(
            int(min(node.get(_NAMES.get(name, name), 0.0) / amount for name, amount in need.items()) + 1e-9)
            for node in self._alive()
        )

    def require(self, need: Mapping[str, float], option: str) -> None:
        """Raises UserError where no node has what a task needs."""
        if self.room(need):
            return
        nodes = self._alive()
        most = {name: max((node.get(_NAMES.get(name, name), 0.0) for node in nodes), default=0.0) for name in need}
        raise UserError(
            f"{option} {shown(need)}: no node of the cluster has that; the most that one has is {shown(most)}"
        )

    def submit(
        self,
        task: Callable[..., Any],
        *arguments: Any,
        need: Mapping[str, float],
        place: tuple[Any, int] | None = None,
    ) -> Any:
        """Start a task, once; it waits until a node has what it needs, or for its place in a group (group, number)."""
        options = _options(need)
        if place is not None:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                place[0], placement_group_bundle_index=place[1]
            )
        return self._ray.remote(task).options(max_retries=0, **options).remote(*arguments)

    @contextlib.contextmanager
    def group(self, need: Mapping[str, float], count: int) -> Iterator[Any]:
        """Places for tasks with such needs, all or none, near one another; what runs there in the end is killed."""
        bundle = {_NAMES.get(name, name): amount for name, amount in need.items()}
        group = self._ray.util.placement_group([bundle] * count, strategy="PACK")
        try:
            yield group
        finally:
            with contextlib.suppress(Exception):
                self._ray.util.remove_placement_group(group)

    def has_room(self, group: Any, timeout: float) -> bool:
        """Whether the nodes have all places of a group, after waiting for them."""
        return bool(group.wait(timeout_seconds=timeout))

    def worker(self, kind: type, *arguments: Any, need: Mapping[str, float]) -> Any:
        """An object of a class on a node that has what it needs; `call` gives it work."""
        return self._ray.remote(kind).options(max_restarts=0, **_options(need)).remote(*arguments)

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """A task of a worker."""
        return getattr(worker, method).remote(*arguments)

    def ended(self, tasks: Collection[Any], timeout: float, *, all_of_them: bool = False) -> list[Any]:
        """Those that are over, after waiting for the first, or for all."""
        if not tasks:
            return []
        some = list(tasks)
        self._ray.wait(some, num_returns=len(some) if all_of_them else 1, timeout=timeout)
        return list(self._ray.wait(some, num_returns=len(some), timeout=0)[0])

    def result(self, task: Any) -> Any:
        """What a task returned. Raises Lost where its node died, RunError where it failed."""
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            if re.search(_CANNOT_IMPORT, str(error)):
                missing = re.search(r"No module named '[\w.]+'", str(error))
                why = f" ({missing[0]})" if missing else ""
                raise RunError(
                    f"a node of the cluster cannot import what it is to run{why}: all nodes need the same jaxtrain"
                ) from error
            raise self._failure(error) from error

    def _failure(self, error: Any) -> Exception:
        """Of a task: its own, or the end of its node."""
        if isinstance(error, self._ray.exceptions.RayTaskError):
            return RunError(f"a task failed on the cluster: {reason(error.cause)}")
        if _AT_ITS_START in str(error):
            why = str(error).strip().splitlines()[-1].strip()
            return RunError(f"a worker cannot start on the cluster: {why}: all nodes need the same jaxtrain")
        return Lost(reason(error).partition(". ")[0])

    def cancel(self, tasks: Collection[Any]) -> None:
        """Ask tasks to end, and wait until they have."""
        for task in tasks:
            with contextlib.suppress(Exception):
                self._ray.cancel(task, force=False)
        with contextlib.suppress(Exception):
            self.ended(tasks, _CANCEL_SECONDS, all_of_them=True)

    def _alive(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def connected(address: str) -> Iterator[Session]:
    """Ray at an address: `local` (started here, for as long as this lasts), `auto` or `ray://HOST:PORT`.

    Raises UserError where Ray is not installed or no cluster answers, RunError where the connection breaks.
    """
    where = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--cluster.address {address}: Ray is missing: pip install 'jaxtrain[cluster]'") from error
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options["include_dashboard"] = False
    here = f"at {where}" if where else "on this machine, and RAY_ADDRESS is not set"
    no_cluster = f"--cluster.address {address}: no cluster of Ray {here}"
    try:
        _reach(where)
    except OSError as error:
        raise UserError(f"{no_cluster}: {reason(error)}") from error
    before = signal.getsignal(signal.SIGTERM)  # Ray takes it
    try:
        with _one_try() if address != "local" else contextlib.nullcontext():
            ray.init(address=address, **options)
    except Exception as error:
        why = " ".join(str(error).split()).partition(". ")[0]
        if "connect" in why:  # which is all that Ray says of a wrong token
            why += "; if it asks for a token, set RAY_AUTH_MODE to token, and the token"
        raise UserError(f"{no_cluster}: {why}") from error
    finally:
        signal.signal(signal.SIGTERM, before)
    try:
        yield Session(ray)
    except ConnectionError as error:
        if type(error) is not ConnectionError:  # what else opens sockets has its own kinds
            raise
        found = re.search(r'details = "(.*)"', str(error))
        why = found[1] if found else reason(error)
        advice = "its head needs the same jaxtrain" if re.search(_CANNOT_IMPORT, why) else "the same command goes on"
        raise RunError(f"the connection to the cluster broke ({why}): {advice}") from error
    finally:
        ray.shutdown()


def _reach(where: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:([0-9]{1,5})", where)
    if found is None or getproxies():  # Ray says what is wrong; gRPC goes through proxies
        return
    if int(found[2]) > 65535:
        raise OSError(f"there is no port {found[2]}")
    socket.create_connection((found[1], int(found[2])), _REACH_SECONDS).close()


@contextlib.contextmanager
def _one_try() -> Iterator[None]:
    """While entered, Ray tries once to connect, which takes 40 seconds where something else answers; not 20 times."""
    name = "RAY_gcs_server_port_wait_time_s"
    own = name not in os.environ
    os.environ.setdefault(name, "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is in the error too
            yield
    finally:
        if own:
            del os.environ[name]


def _options(need: Mapping[str, float]) -> dict[str, Any]:
    named = {_NAMES.get(name, name): amount for name, amount in need.items()}
    return {"num_cpus": named.pop("CPU", 0.0), "num_gpus": named.pop("GPU", 0.0), "resources": named}


def shown(need: Mapping[str, float]) -> str:
    """As on the command line."""
    return ",".join(f"{name}={amount:g}" for name, amount in need.items())
