"""Many L2-penalised softmax or logistic regressions at once: batched L-BFGS on shared vectors.

All members (settings) see the same vectors, so the forward and the backward pass of all of them is one matrix product
each, [images, features] by [features, classes * members]. Three things keep the number of such products small: the
diagonal of each member's own Hessian as the initial matrix of L-BFGS (Nocedal & Wright 2006, algorithm 7.4), which
in the vectors' principal axes is nearly all of it; a line search that needs no product, since logits are linear in the
step; and a stopping rule that estimates how much loss is left instead of how long a gradient is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

TOLERANCE = 1e-5
"""A member is done when the loss still to gain, by the quadratic model, is this share of its loss."""
MAX_ITERATIONS = 1000
HISTORY = 10
_REFRESH = 10  # iterations between two evaluations of the Hessian's diagonal: one more product each
_SEARCHES = 12
_FLATTER = 0.5  # the slope at the end of a step, as a share of the slope at its start
_ROUNDING = 1e-6  # of a loss in float32
_Bracket = tuple[Any, Array, Array, Array, Array]


class Problem(NamedTuple):
    """Minimise over W: sum_i weight_i CE(z_i W, target_i) + l2 / 2 |W without its last row|^2.

    One class is a logistic regression: its logit stands against one of 0.
    """

    z: Array
    """float32[images, inputs]: the vectors, their last entry 1 (the intercept's)."""
    target: Array
    """float32[images, classes, members or 1]: sums to 1 over the classes; of one class, from 0 to 1."""
    weight: Array
    """float32[images, members or 1]: sums to 1 over the images."""


class Optimum(NamedTuple):
    """Where each member ended."""

    w: Array
    """float32[inputs, classes, members]."""
    objective: Array
    """float32[members]: loss with penalty."""
    cross_entropy: Array
    """float32[members]: loss without penalty."""
    iterations: Array
    """int32[members]."""
    converged: Array
    """bool[members]."""


class _Point(NamedTuple):
    w: Array
    logits: Array  # [images, classes, members]
    residual: Array  # (probabilities - target) * weight, the same shape
    objective: Array
    cross_entropy: Array


class _State(NamedTuple):
    step: Array
    point: _Point
    gradient: Array
    curvature: Array  # the Hessian's diagonal
    steps: Array  # [history, inputs, classes, members]
    changes: Array  # of the gradient, the same shape
    rho: Array  # [history, members]; 0: no such step
    active: Array
    iterations: Array


def solve(problem: Problem, l2: Array, tolerance: float = TOLERANCE) -> Optimum:
    """The optimum of each member, from zero; `l2` is float32[members], positive."""
    start = jnp.zeros((problem.z.shape[1], problem.target.shape[1], len(l2)), jnp.float32)
    penalty = l2 * jnp.ones_like(start[:, :1]).at[-1].set(0.0)  # [inputs, 1, members]

    def gradient(point: _Point) -> Array:
        return _backward(problem.z, point.residual) + penalty * point.w

    def curvature(point: _Point) -> Array:
        p = point.residual + problem.target * problem.weight[:, None]  # weight * probabilities
        share = jnp.maximum(problem.weight, 1e-30)[:, None]
        return _backward(problem.z * problem.z, p * (1.0 - p / share)) + penalty + 1e-9

    def unfinished(state: _State) -> Array:
        return jnp.any(state.active) & (state.step < MAX_ITERATIONS)

    def iterate(state: _State) -> _State:
        point = state.point
        downhill = jnp.where(state.active, _direction(state), 0.0)
        moved = _search(problem, penalty, point, state.gradient, downhill, state.active)
        slope = gradient(moved)
        s, y = moved.w - point.w, slope - state.gradient
        sy = _dot(s, y)
        slot = state.step % HISTORY
        step = state.step + 1
        diagonal = lax.cond(step % _REFRESH == 0, curvature, lambda _: state.curvature, moved)
        return _State(
            step=step,
            point=moved,
            gradient=slope,
            curvature=diagonal,
            steps=state.steps.at[slot].set(s),
            changes=state.changes.at[slot].set(y),
            rho=state.rho.at[slot].set(jnp.where(sy > 0, 1.0 / jnp.where(sy > 0, sy, 1.0), 0.0)),
            active=state.active & _to_gain(slope, diagonal, moved.objective, tolerance),
            iterations=state.iterations + state.active,
        )

    first = _point(problem, penalty, start, _forward(problem.z, start))
    slope, diagonal = gradient(first), curvature(first)
    empty = jnp.zeros((HISTORY, *start.shape), start.dtype)
    state = _State(
        step=jnp.int32(0),
        point=first,
        gradient=slope,
        curvature=diagonal,
        steps=empty,
        changes=empty,
        rho=jnp.zeros((HISTORY, l2.shape[0]), start.dtype),
        active=_to_gain(slope, diagonal, first.objective, tolerance),
        iterations=jnp.zeros(l2.shape, jnp.int32),
    )
    end = lax.while_loop(unfinished, iterate, state)
    return Optimum(end.point.w, end.point.objective, end.point.cross_entropy, end.iterations, ~end.active)


def _forward(z: Array, w: Array) -> Array:
    return (z @ w.reshape(w.shape[0], -1)).reshape(z.shape[0], *w.shape[1:])


def _backward(z: Array, residual: Array) -> Array:
    return (z.T @ residual.reshape(residual.shape[0], -1)).reshape(z.shape[1], *residual.shape[1:])


def _dot(a: Array, b: Array) -> Array:
    return jnp.einsum("dkm,dkm->m", a, b)


def _to_gain(gradient: Array, curvature: Array, objective: Array, tolerance: float) -> Array:
    """Whether more than `tolerance` of the objective is still to gain: half the Newton decrement, diagonal Hessian."""
    return 0.5 * _dot(gradient, gradient / curvature) > tolerance * objective


def _losses(problem: Problem, logits: Array) -> tuple[Array, Array]:
    """Cross-entropy [members] and probabilities [images, classes, members]."""
    truth = jnp.sum(logits * problem.target, axis=1)
    if logits.shape[1] == 1:
        return _mean(problem, jnp.logaddexp(logits[:, 0], 0.0) - truth), jax.nn.sigmoid(logits)
    top = jnp.max(logits, axis=1, keepdims=True)
    exponential = jnp.exp(logits - top)
    total = jnp.sum(exponential, axis=1, keepdims=True)
    return _mean(problem, (jnp.log(total) + top)[:, 0] - truth), exponential / total


def _mean(problem: Problem, each: Array) -> Array:
    """[images, members] to [members]."""
    return jnp.sum(problem.weight * each, axis=0)


def _point(problem: Problem, penalty: Array, w: Array, logits: Array) -> _Point:
    cross_entropy, p = _losses(problem, logits)
    residual = (p - problem.target) * problem.weight[:, None]
    return _Point(w, logits, residual, cross_entropy + 0.5 * _dot(penalty * w, w), cross_entropy)


def _direction(state: _State) -> Array:
    """L-BFGS's two loops, per member; steepest descent in the Hessian's diagonal where they do not lead downhill."""
    q, alphas = state.gradient, []
    slots = [(state.step - 1 - i) % HISTORY for i in range(HISTORY)]
    for slot in slots:
        alpha = state.rho[slot] * _dot(state.steps[slot], q)
        q = q - alpha * state.changes[slot]
        alphas.append(alpha)
    q = q / state.curvature
    for slot, alpha in zip(reversed(slots), reversed(alphas), strict=True):
        beta = state.rho[slot] * _dot(state.changes[slot], q)
        q = q + (alpha - beta) * state.steps[slot]
    return -jnp.where(_dot(q, state.gradient) > 0, q, state.gradient / state.curvature)


def _search(problem: Problem, penalty: Array, point: _Point, gradient: Array, d: Array, active: Array) -> _Point:
    """A step along `d` that meets the strong Wolfe conditions: Newton's method in one variable, kept in a bracket."""
    along = _forward(problem.z, d)
    truth = jnp.sum(along * problem.target, axis=1)
    first, second = _dot(penalty * point.w, d), _dot(penalty * d, d)
    initial = _dot(gradient, d)

    def evaluate(t: Array) -> tuple[Array, Array, Array]:
        cross_entropy, p = _losses(problem, point.logits + t * along)
        mean = jnp.sum(p * along, axis=1)
        variance = jnp.maximum(jnp.sum(p * along * along, axis=1) - mean * mean, 0.0)
        gain = cross_entropy - point.cross_entropy + t * first + 0.5 * t * t * second
        slope = _mean(problem, mean - truth) + first + t * second
        return gain, slope, _mean(problem, variance) + second

    def open_(carry: _Bracket) -> Array:
        count, *_, done = carry
        return (count < _SEARCHES) & ~jnp.all(done)

    def narrow(carry: _Bracket) -> _Bracket:
        count, t, low, high, done = carry
        gain, slope, curvature = evaluate(t)
        lower = gain <= 1e-4 * t * initial + _ROUNDING * point.objective
        done = done | (lower & (jnp.abs(slope) <= _FLATTER * jnp.abs(initial)))
        beyond = ~lower | (slope > 0)
        low, high = jnp.where(beyond, low, t), jnp.where(beyond, t, high)
        newton = t - slope / jnp.maximum(curvature, 1e-30)
        middle = jnp.where(jnp.isfinite(high), 0.5 * (low + high), 4.0 * t)
        inside = (newton > low) & (newton < high) & (newton <= 4.0 * t)
        return count + 1, jnp.where(done, t, jnp.where(inside, newton, middle)), low, high, done

    one = jnp.ones_like(initial)
    _, t, low, _, done = lax.while_loop(open_, narrow, (jnp.int32(0), one, 0.0 * one, jnp.inf * one, ~active))
    t = jnp.where(active, jnp.where(done, t, low), 0.0)
    return _point(problem, penalty, point.w + t * d, point.logits + t * along)
