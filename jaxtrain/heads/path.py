"""The regularisation path: the optima of many penalties for little more than the cost of a few.

The optimum is a smooth function of log(penalty). So a few penalties, a factor of ten apart, are solved from zero; then
those in the middle between them from where a cubic through their neighbours says, and so on, twice as fine each time.
Most of these starts are already as good as the stopping rule asks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from jaxtrain.heads.lbfgs import Optimum, Problem, solve

_APART = 10.5  # ratio of penalties at most, between two that are solved from zero
_FROM_ZERO = 4  # at once: neighbours take about as many iterations, and all wait for the slowest


class Level(NamedTuple):
    """Members that are solved together."""

    members: NDArray[np.int32]
    """Their places in the list of penalties, which is sorted."""
    blend: NDArray[np.float32]
    """float32[members solved before, members]: their starts as weighted sums of the optima solved before."""


def plan(penalties: NDArray[Any]) -> list[Level]:
    """The levels in which sorted penalties are solved, from coarse to fine."""
    logs = np.log(np.asarray(penalties, np.float64))
    count = len(logs)
    stride = 1
    while 2 * stride < count and np.max(logs[2 * stride :] - logs[: -2 * stride]) <= np.log(_APART):
        stride *= 2
    solved = np.union1d(np.arange(0, count, stride), count - 1)
    levels = [Level(solved.astype(np.int32), np.zeros((0, len(solved)), np.float32))]
    order = solved
    while stride > 1:
        stride //= 2
        new = np.setdiff1d(np.arange(0, count, stride), solved)
        if len(new):
            blend = np.stack([_cubic(logs[order], logs[i]) for i in new], axis=1)
            levels.append(Level(new.astype(np.int32), blend.astype(np.float32)))
        solved, order = np.union1d(solved, new), np.concatenate([order, new])
    return levels


def solve_path(problem: Problem, l2: Array, levels: Sequence[Level], width: int) -> Optimum:
    """The optima for all penalties, in their order; at most `width` of them are worked on at once."""
    inputs, classes = problem.z.shape[1], problem.target.shape[1]
    found: list[Optimum] = []
    for level in levels:
        if found:
            known = jnp.concatenate([optimum.w for optimum in found], axis=-1)
            start = jnp.einsum("dks,sm->dkm", known, level.blend)
        else:
            start = jnp.zeros((inputs, classes, len(level.members)), jnp.float32)
        together = width if found else min(width, _FROM_ZERO)
        found.append(in_groups(functools.partial(solve, problem), together, l2[level.members], start))
    back = jnp.argsort(jnp.concatenate([level.members for level in levels]))
    return Optimum(*(jnp.concatenate(parts, axis=-1)[..., back] for parts in zip(*found, strict=True)))


def in_groups(function: Callable[..., Any], width: int, *arguments: Array) -> Any:
    """`function(*arguments)` on at most `width` members at once: the last axis of all arguments and results."""
    count = arguments[0].shape[-1]
    if count <= width:
        return function(*arguments)
    groups = -(-count // width)
    places = np.minimum(np.arange(groups * width), count - 1)  # the last member fills the last group

    def split(argument: Array) -> Array:
        return jnp.moveaxis(argument[..., places].reshape(*argument.shape[:-1], groups, width), -2, 0)

    def merge(result: Array) -> Array:
        together = jnp.moveaxis(result, 0, -2)
        return together.reshape(*together.shape[:-2], groups * width)[..., :count]

    return jax.tree.map(merge, lax.map(lambda group: function(*group), tuple(map(split, arguments))))


def _cubic(nodes: NDArray[np.float64], at: float) -> NDArray[np.float64]:
    """Lagrange's weights of the four nearest nodes; the others get 0."""
    near = np.argsort(np.abs(nodes - at), kind="stable")[:4]
    weights = np.zeros(len(nodes))
    for i in near:
        others = nodes[near[near != i]]
        weights[i] = np.prod((at - others) / (nodes[i] - others))
    return weights
