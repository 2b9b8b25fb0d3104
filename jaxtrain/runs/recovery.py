"""What follows a step that is not finite, or does not fit in memory: where it began, and what can be done."""

from __future__ import annotations

import logging
from dataclasses import replace

import jax

from jaxtrain.errors import RunError, UserError
from jaxtrain.files import reason
from jaxtrain.runs.directory import RunDirectory
from jaxtrain.runs.resolve import mixes_images
from jaxtrain.runs.setup import Setup
from jaxtrain.training.memory import accumulations, estimate, fitting
from jaxtrain.training.meter import compile_step
from jaxtrain.training.nonfinite import Diverged, find_origin
from jaxtrain.training.state import TrainState, from_arrays, to_arrays

_log = logging.getLogger(__name__)


def diagnosis(setup: Setup, error: Diverged, state: TrainState, start: int) -> str:
    """Where it began, by computing again the steps since the last good state (after `start`); and what can be done."""
    try:
        placed = setup.strategy.place(state)
        origin = find_origin(setup.program.spec, setup.feed, setup.strategy, placed, start, error.step)
        began = f"it began in {origin}" if origin else "computed again, the fault did not come back"
    except Exception as problem:
        began = f"where it began could not be found ({reason(problem)})"
    kept = f"the last good checkpoint is that of step {start}" if start else "no checkpoint was saved before"
    return (
        f"{error}; {began}; {kept}; lower optimizer.learning_rate, set optimizer.clip_norm, or continue with "
        "--train.on_nonfinite skip or rollback"
    )


def fit_memory(setup: Setup, like: TrainState, step: int, directory: RunDirectory) -> None:
    """Raises `accumulate` of `setup` until a step fits in the device's memory, and notes it in the run's config.

    `like`: the state's shapes. Raises RunError where no part of a batch fits, UserError in a run of many processes.
    """
    if jax.process_count() > 1:
        raise UserError("train.microbatch: auto is for runs of one process; give train.accumulate")
    options, host, args = setup.config.train, to_arrays(setup.state), setup.feed.args(step)
    length = 1 if setup.streamed else options.steps_per_call or 1

    def attempt(accumulate: int) -> None:
        state = setup.strategy.place(from_arrays(host, like=like))
        step = setup.program.split(accumulate).step
        jax.block_until_ready(compile_step(step, setup.feed, setup.strategy, length)(state, *args))

    unit = len(setup.strategy.devices) * (2 if mixes_images(setup.config) else 1)
    parts = fitting(accumulations(options.batch_size, unit, options.accumulate), attempt)
    setup.state = from_arrays(host, like=like)
    if parts != options.accumulate:
        setup.program = setup.program.split(parts)
        setup.step = replace(setup.step, accumulate=parts)
        setup.config = setup.config.replace(**{"train.accumulate": parts})
        directory.record("train.accumulate", parts)
        size = options.batch_size // parts
        _log.warning("the batch does not fit in memory: gradients are summed over %d parts of %d", parts, size)


def too_large(setup: Setup, like: TrainState, step: int) -> RunError:
    """What is said when memory ran out, with the compiler's estimate of a step."""
    size = setup.config.train.batch_size // setup.step.accumulate
    one = compile_step(setup.program.step, setup.feed, setup.strategy, 1)
    need = estimate(one, (like, *setup.feed.args(step)), setup.strategy)
    return RunError(
        f"{size:,} images at once do not fit in the memory of {setup.strategy.devices[0].device_kind}{need}; give "
        "--train.microbatch auto, or a smaller train.batch_size"
    )
