"""Ways to run one pure step on the local devices: jit over a mesh, pmap, FSDP. All agree to float tolerance."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from jaxtrain.backend import shared_by
from jaxtrain.config import ParallelConfig
from jaxtrain.errors import UserError
from jaxtrain.training.state import Tree

AXIS = "data"
# Smaller arrays are replicated under fsdp: gathering them would cost more than it saves.
_FSDP_MIN_ELEMENTS = 1024


class Strategy(Protocol):
    """Where arrays lie and how functions over them are compiled. Functions see global arrays (this device's part
    under pmap)."""

    devices: list[jax.Device]
    """Of all processes that it spans."""
    share: tuple[int, int]
    """(index, count) of this process among those: the part of each global batch that it gives to `shard`."""
    axis_name: str | None

    def place(self, tree: Tree) -> Tree:
        """Parameters or a train state from the host, replicated or sharded as the strategy has it."""

    def replicate(self, tree: Tree) -> Tree:
        """Arrays that every device reads whole (a data set that fits)."""

    def shard(self, tree: Tree) -> Tree:
        """A global batch, split over the devices, from this process's rows of it: `[batch / processes, ...]`."""

    def rows(self, local: NDArray[Any]) -> NDArray[Any]:
        """The global batch on the host, from the rows of each process."""

    def local(self, tree: Tree) -> Tree:
        """Inside a compiled function: this device's part of a batch that was computed there in full."""

    def single(self, tree: Tree) -> Tree:
        """A placed tree as one copy, for reading on the host."""

    def compile_steps(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`(state, *args) -> (state, metrics)`, its state donated."""

    def compile_map(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`(weights, batch) -> tree of [batch, ...]`, the rows of the global batch in order."""


class JitStrategy:
    """`jax.jit` over a mesh with sharded batches; parameters replicated, or sharded when `fsdp`."""

    axis_name: str | None = None

    def __init__(self, devices: list[jax.Device], *, fsdp: bool = False) -> None:
        self.devices = devices
        self.share = share_of(devices)
        self.sharded = fsdp
        self._mesh = make_mesh(devices)
        self._whole = NamedSharding(self._mesh, PartitionSpec())
        self._rows = NamedSharding(self._mesh, PartitionSpec(AXIS))

    def place(self, tree: Tree) -> Tree:
        """See `Strategy`."""
        return self._put(tree, jax.tree.map(self._sharding, tree))

    def shaped(self, tree: Tree) -> Tree:
        """Shapes as `place` would lay their arrays, to compile for."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._sharding(leaf)), tree
        )

    def shaped_rows(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """That of a global batch."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._rows)

    def shaped_whole(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """That of an array which every device has."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._whole)

    def replicate(self, tree: Tree) -> Tree:
        """See `Strategy`."""
        return self._put(tree, jax.tree.map(lambda _: self._whole, tree))

    def shard(self, tree: Tree) -> Tree:
        """See `Strategy`."""
        return put_rows(tree, self._rows)

    def rows(self, local: NDArray[Any]) -> NDArray[Any]:
        """See `Strategy`."""
        return join_rows(local, self._rows)

    def local(self, tree: Tree) -> Tree:
        """See `Strategy`."""
        if len(self.devices) == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, self._rows)

    def single(self, tree: Tree) -> Tree:
        """See `Strategy`."""
        if not self.sharded or self.share[1] == 1:
            return tree
        gather = _replicator(self._whole)
        return jax.tree.map(lambda leaf: leaf if leaf.is_fully_replicated else np.asarray(gather(leaf)), tree)

    def compile_steps(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """See `Strategy`."""

        # Without constraints the compiler may return replicated parameters sharded, or the reverse.
        def constrained(state: Tree, *args: Any) -> Any:
            new, metrics = function(state, *args)
            shardings = jax.tree.map(self._sharding, new)
            return jax.lax.with_sharding_constraint((new, metrics), (shardings, self._whole))

        function = shared_by(self._mesh, function)
        return jax.jit(function if len(self.devices) == 1 else constrained, donate_argnums=0)

    def compile_map(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """See `Strategy`."""
        return jax.jit(shared_by(self._mesh, function), out_shardings=self._whole)

    def _put(self, tree: Tree, shardings: Any) -> Tree:
        return jax.device_put(tree, shardings) if self.share[1] == 1 else jax.tree.map(put_everywhere, tree, shardings)

    def _sharding(self, leaf: Any) -> NamedSharding:
        count = len(self.devices)
        shape = np.shape(leaf)
        if not self.sharded or math.prod(shape) < _FSDP_MIN_ELEMENTS:
            return self._whole
        sizes = [size if size % count == 0 else 0 for size in shape]
        if max(sizes) == 0:
            return self._whole
        axis = int(np.argmax(sizes))
        return NamedSharding(self._mesh, PartitionSpec(*[AXIS if i == axis else None for i in range(len(shape))]))


class PmapStrategy:
    """`jax.pmap` with `axis_name="data"`: the explicit replicated form; every array has a leading axis of this
    process's devices."""

    axis_name: str | None = AXIS

    def __init__(self, devices: list[jax.Device]) -> None:
        self.devices = devices
        self.share = share_of(devices)
        here = [device for device in devices if device.process_index == jax.process_index()]
        self._here = len(here)
        self._leading = NamedSharding(make_mesh(here), PartitionSpec(AXIS))
        self._rows = NamedSharding(make_mesh(devices), PartitionSpec(AXIS))

    def place(self, tree: Tree) -> Tree:
        """See `Strategy`."""
        return self.replicate(tree)

    def replicate(self, tree: Tree) -> Tree:
        """See `Strategy`."""
        count = self._here

        def stack(leaf: Any) -> Any:
            if isinstance(leaf, jax.Array):  # also typed keys
                return jax.device_put(jax.numpy.stack([leaf] * count), self._leading)
            return jax.device_put(np.broadcast_to(leaf, (count, *np.shape(leaf))), self._leading)

        return jax.tree.map(stack, tree)

    def shard(self, tree: Tree) -> Tree:
        """See `Strategy`."""
        return jax.tree.map(lambda x: jax.device_put(x.reshape(self._here, -1, *x.shape[1:]), self._leading), tree)

    def rows(self, local: NDArray[Any]) -> NDArray[Any]:
        """See `Strategy`."""
        return join_rows(local, self._rows)

    def local(self, tree: Tree) -> Tree:
        """See `Strategy`."""
        count = len(self.devices)

        def part(x: jax.Array) -> jax.Array:
            rows = x.shape[0] // count
            return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(AXIS) * rows, rows)

        return jax.tree.map(part, tree)

    def single(self, tree: Tree) -> Tree:
        """See `Strategy`."""
        return jax.tree.map(_first_copy, tree)

    def compile_steps(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """See `Strategy`."""
        return self._pmap(function, donate=(0,), read=lambda out: (out[0], self.single(out[1])))

    def compile_map(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """See `Strategy`."""

        def join(rows: jax.Array) -> Any:
            rows = rows.reshape(-1, *rows.shape[2:])
            return rows if self.share[1] == 1 else self.rows(np.asarray(rows))

        return self._pmap(function, donate=(), read=lambda out: jax.tree.map(join, out))

    def _pmap(
        self, function: Callable[..., Any], donate: tuple[int, ...], read: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        mapped = jax.pmap(function, axis_name=AXIS, devices=self.devices, donate_argnums=donate)
        return lambda *args: read(mapped(*args))


def _first_copy(stacked: jax.Array) -> jax.Array:
    """Of copies `[devices, ...]` the one of the first device; `stacked[0]` would make all devices meet, which on CPU
    can halt for ever while others of such programs wait."""
    return stacked.addressable_shards[0].data[0]


def share_of(devices: list[jax.Device]) -> tuple[int, int]:
    """(place of this process among those that the devices belong to, their number)."""
    processes = sorted({device.process_index for device in devices})
    return processes.index(jax.process_index()), len(processes)


def make_mesh(devices: list[jax.Device]) -> Mesh:
    """One axis over the devices; those of one process lie together, so that its rows of a batch do."""
    if share_of(devices)[1] > 1:
        return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def put_everywhere(leaf: Any, sharding: NamedSharding) -> Any:
    """An array that every process has whole on the devices of all, each getting its part."""
    if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = put_everywhere(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])


def put_rows(tree: Tree, rows: NamedSharding) -> Tree:
    """A batch of all processes, from the rows that this one has."""
    if rows.is_fully_addressable:
        return jax.device_put(tree, rows)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(rows, np.asarray(leaf)), tree)


def join_rows(local: NDArray[Any], rows: NamedSharding) -> NDArray[Any]:
    """The rows of all processes, on each of them."""
    if rows.is_fully_addressable:
        return local
    whole = NamedSharding(rows.mesh, PartitionSpec())
    return np.asarray(_replicator(whole)(put_rows(local, rows)))


@lru_cache(maxsize=8)
def _replicator(whole: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=whole)


def set_cpu_devices(config: ParallelConfig) -> None:
    """Split the CPU into virtual devices, before JAX has looked at it; UserError where it is too late."""
    if config.cpu_devices is None:
        return
    try:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    except RuntimeError:
        if jax.local_device_count("cpu") != config.cpu_devices:
            raise UserError(
                f"parallel.cpu_devices: JAX already runs with {jax.local_device_count('cpu')}; set it before the first "
                "use of JAX in this process"
            ) from None


def check_devices() -> None:
    """Have JAX look for its devices; UserError where it has none of the kind that it was told to use.

    Call it once the processes of a run have found one another, before anything is written.
    """
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter for CUDA without a GPU
        told = os.environ.get("JAX_PLATFORMS")
        first = (str(error).strip().splitlines() or [""])[0].partition(". (set JAX_PLATFORMS")[0]
        why = f" ({first})" if first else ""
        if not told:
            raise UserError(f"JAX finds no device{why}") from None
        raise UserError(f"JAX_PLATFORMS={told}: JAX finds no such device here{why}; unset it, or give cpu") from None


def must_block(strategy: Strategy) -> bool:
    """Whether calls may not overlap: on several CPU devices jax < 0.12 deadlocks in the collectives of many."""
    return len(strategy.devices) > 1 and strategy.devices[0].platform == "cpu"


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of freed buffers for the next step, instead of giving it back to the system.

    A small CNN's step faults in 9,000 fresh pages otherwise and takes 1.25 times as long. Settings of one's own
    (MALLOC_... or another allocator) are left alone.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


def make_strategy(config: ParallelConfig, *, everywhere: bool = False) -> Strategy:
    """The strategy on this process's devices, or `everywhere` on those of all processes; auto is jit."""
    check_devices()
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        _keep_freed_memory()
    if config.devices is not None and config.devices > len(devices):
        raise UserError(f"parallel.devices: {config.devices} asked for, {len(devices)} present")
    processes = range(jax.process_count()) if everywhere else [jax.process_index()]
    devices = [device for process in processes for device in jax.local_devices(process)[: config.devices]]
    match config.strategy:
        case "pmap":
            return PmapStrategy(devices)
        case "fsdp":
            return JitStrategy(devices, fsdp=True)
        case _:
            return JitStrategy(devices)


def check_batch_size(batch_size: int, *, devices: int, accumulate: int, pairs: bool) -> None:
    """The global batch must split evenly over devices and accumulation steps (and into pairs for mixup)."""
    unit = devices * accumulate * (2 if pairs else 1)
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        near = above if below == 0 or above - batch_size < batch_size - below else below
        parts = f"{devices} device{'s' * (devices > 1)}"
        parts += f" x {accumulate} accumulation steps" * (accumulate > 1) + " x pairs for mixup or CutMix" * pairs
        raise UserError(
            f"train.batch_size: {batch_size} does not divide by {unit} ({parts}); nearest that does: {near}"
        )
