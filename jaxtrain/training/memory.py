"""A batch that the device's memory does not hold: the largest part that it does, or how much was asked for."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxtrain.errors import RunError
from jaxtrain.training.parallel import Strategy

_GIB = 1 << 30


def out_of_memory(error: BaseException) -> bool:
    """Whether XLA ran out of memory while it compiled or ran."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def accumulations(batch_size: int, unit: int, first: int) -> Iterator[int]:
    """`first`, and its doubles as long as every part of the batch divides by `unit`.

    >>> list(accumulations(96, 2, 1))
    [1, 2, 4, 8, 16]
    """
    while batch_size % (first * unit) == 0:
        yield first
        first *= 2


def fitting(tries: Iterator[int], attempt: Callable[[int], None]) -> int:
    """The first of `tries` with which `attempt` does not run out of memory; RunError where none is left."""
    number = 0
    for number in tries:
        try:
            attempt(number)
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
        else:
            return number
        gc.collect()  # what the failed attempt held goes with its frames
    raise RunError(
        f"train.microbatch auto: even {number} parts of a batch do not fit in the device's memory; take a smaller "
        "model, data.image_size or train.batch_size, or --model.remat True"
    )


def estimate(compiled: Callable[..., Any], args: tuple[Any, ...], strategy: Strategy) -> str:
    """How much memory of a device one call takes, by the compiler, and how much there is: a clause, or nothing."""
    try:
        stats = compiled.lower(*args).compile().memory_analysis()  # type: ignore[attr-defined]
        need = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
        need -= stats.alias_size_in_bytes
    except (AttributeError, jax.errors.JaxRuntimeError):  # pmap; a compiler that does not say, or runs out itself
        return ""
    limit = (strategy.devices[0].memory_stats() or {}).get("bytes_limit")
    return f": a step needs about {need / _GIB:.3g} GiB" + (f", there are {limit / _GIB:.3g}" if limit else "")
