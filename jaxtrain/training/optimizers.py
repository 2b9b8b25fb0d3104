"""Optimizers and learning-rate schedules by name, through optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtrain.config import OptimizerConfig, ScheduleConfig, chosen
from jaxtrain.errors import UserError

Tree = Any
Schedule = Callable[[jax.Array], jax.Array]
Mask = Callable[[Tree], Tree]
"""From parameters to a tree of the same structure with True for some leaves."""

# Values that a config leaves open, by optimizer. sgd: He et al. 2016 for small images; adamw: the usual for ViTs
# (Touvron et al. 2021); lamb: RSB A2 (Wightman et al. 2021); lion: a third of AdamW's rate with a larger decay
# (Chen et al. 2023); muon: AdamW's rate, updates scaled to its size (Liu et al. 2025).
DEFAULTS: dict[str, dict[str, float | None]] = {
    "sgd": {"learning_rate": 0.1, "weight_decay": 5e-4, "momentum": 0.9, "beta1": None, "beta2": None},
    "adamw": {"learning_rate": 1e-3, "weight_decay": 0.05, "momentum": None, "beta1": 0.9, "beta2": 0.999},
    "lamb": {"learning_rate": 5e-3, "weight_decay": 0.02, "momentum": None, "beta1": 0.9, "beta2": 0.999},
    "lion": {"learning_rate": 3e-4, "weight_decay": 0.3, "momentum": None, "beta1": 0.9, "beta2": 0.99},
    "muon": {"learning_rate": 2e-3, "weight_decay": 0.05, "momentum": 0.95, "beta1": 0.9, "beta2": 0.999},
}

_NEVER_DECAYED = {"bias", "scale", "gamma", "cls_token", "reg_token", "pos_embed"}


def resolve_optimizer(config: OptimizerConfig) -> OptimizerConfig:
    """Fill what the config leaves open; refuse options that the optimizer does not have."""
    values: dict[str, float | None] = {}
    for option, default in DEFAULTS[config.name].items():
        given = getattr(config, option)
        if given is not None and default is None:
            raise UserError(f"optimizer.{option}: {config.name} has no such option; remove it")
        values[option] = default if given is None else given
    return config.model_copy(update=values)


def decay_steps(config: ScheduleConfig, steps: int) -> int:
    """Of wsd, at the end of a number of steps."""
    return max(round(steps * config.decay_fraction), 1)


def check_schedule(config: ScheduleConfig) -> None:
    """Raises UserError for an option that the schedule does not have."""
    owners = {
        "warmup_epochs": {"cosine", "linear", "wsd", "constant"},
        "final_ratio": {"cosine", "linear", "wsd", "one_cycle"},
        "decay_fraction": {"wsd"},
    }
    default = ScheduleConfig()
    for option, names in owners.items():
        value = getattr(config, option)
        if config.name not in names and value and value != getattr(default, option):
            raise UserError(f"schedule.{option}: {config.name} has no such option; remove it")


def make_schedule(config: ScheduleConfig, *, peak: float, steps: int, warmup_steps: int) -> Schedule:
    """The learning rate as a function of the step (a traced or plain integer).

    `warmup_steps` of linear warmup towards `peak`, then the named shape over the remaining steps. one_cycle is
    Smith & Topin 2018 with 30% of all steps rising; wsd is warmup-stable-decay (Hu et al. 2024).
    """
    rest = max(steps - warmup_steps, 1)
    end = peak * config.final_ratio
    match config.name:
        case "constant":
            main = optax.constant_schedule(peak)
        case "linear":
            main = optax.linear_schedule(peak, end, rest)
        case "cosine":
            main = optax.cosine_decay_schedule(peak, rest, alpha=config.final_ratio)
        case "wsd":
            decay = decay_steps(config, steps)
            main = optax.join_schedules(
                [optax.constant_schedule(peak), optax.linear_schedule(peak, end, decay)],
                [max(rest - decay, 0)],
            )
        case "one_cycle":
            share = optax.cosine_onecycle_schedule(
                steps,
                1.0,
                pct_start=0.3,
                div_factor=25.0,
                final_div_factor=1.0 / max(config.final_ratio, 1e-4),
            )
            return lambda step: peak * share(step)  # optax's own takes no traced peak
    if warmup_steps == 0:
        return main
    # The first step already moves: warmup goes over 1/w, 2/w, ..., 1 instead of starting with a wasted step at 0.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, main], [warmup_steps])


class Followed:
    """A schedule that remembers whether it was asked: an optimizer of one's own need not go by it."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule, self.asked = schedule, False

    def __call__(self, step: Any) -> Any:
        """The learning rate at a step."""
        self.asked = True
        return self._schedule(step)


def rate_in_force(opt_state: Any, schedule: Followed | None, step: jax.Array) -> jax.Array | None:
    """The learning rate of an update, when it was traced: of `optax.inject_hyperparams`, or of a schedule that was
    asked; None where neither says."""
    kept = optax.tree_utils.tree_get_all_with_path(opt_state, "learning_rate")
    if kept:
        return jnp.asarray(kept[0][1], jnp.float32)
    return jnp.asarray(schedule(step), jnp.float32) if schedule is not None and schedule.asked else None


def decay_mask(params: Tree) -> Tree:
    """True for the arrays that weight decay applies to: matrices and kernels, no norms, biases, tokens."""
    return {name: leaf.ndim > 1 and name.rpartition("/")[2] not in _NEVER_DECAYED for name, leaf in params.items()}


def make_optimizer(
    config: OptimizerConfig, schedule: Schedule, *, decays: Mask = decay_mask
) -> optax.GradientTransformation:
    """The optax transformation for a resolved config; weight decay applies to the leaves that `decays` marks."""
    rate, decay = schedule, config.weight_decay
    match config.name:
        case "sgd":
            core = optax.chain(
                optax.add_decayed_weights(decay, mask=decays),
                optax.sgd(rate, momentum=config.momentum, nesterov=True),
            )
        case "adamw":
            core = optax.adamw(rate, b1=config.beta1, b2=config.beta2, weight_decay=decay, mask=decays)
        case "lamb":
            core = optax.lamb(rate, b1=config.beta1, b2=config.beta2, weight_decay=decay, mask=decays)
        case "lion":
            core = optax.lion(rate, b1=config.beta1, b2=config.beta2, weight_decay=decay, mask=decays)
        case "muon":
            # Its own decay knows no mask for the part that AdamW trains, so directions come first, then decay and rate.
            directions = optax.contrib.muon(
                1.0,
                beta=config.momentum,
                adam_b1=config.beta1,
                adam_b2=config.beta2,
                muon_weight_dimension_numbers=_muon_dimensions,
                consistent_rms=0.2,
            )
            decayed = optax.add_decayed_weights(-chosen(decay), mask=decays)
            core = optax.chain(directions, decayed, optax.scale_by_schedule(rate))
    if config.clip_norm is None:
        return core
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), core)


def _muon_dimensions(params: Tree) -> Tree:
    """Kernels inside the network go to Muon as [inputs, outputs] matrices; the head and all else to AdamW."""

    def dimensions(name: str, leaf: jax.Array) -> Any:
        names = name.split("/")
        if "head" in names or names[-1] != "kernel" or leaf.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return {name: dimensions(name, leaf) for name, leaf in params.items()}


def ema_update(ema: Tree, new: Tree, decay: float, step: jax.Array) -> Tree:
    """Exponential moving average; the decay rises from 0.1 as (1 + step) / (10 + step), so that a short run is not
    dominated by its initialisation (the rule of TensorFlow's ExponentialMovingAverage)."""
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, now: old + (1.0 - rate) * (now - old), ema, new)
