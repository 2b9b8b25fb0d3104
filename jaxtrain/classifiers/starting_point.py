"""Where fine-tuning starts: the pre-trained arrays in the place of fresh ones, and a record of which they were."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxtrain.errors import UserError
from jaxtrain.files import write_text
from jaxtrain.models.weights import Adapted, Pretrained
from jaxtrain.readers import read_json, reading
from jaxtrain.training.state import TrainState, Tree

_RECORD = "weights.json"
_log = logging.getLogger(__name__)


def recorded(run_dir: Path | None) -> dict[str, Any] | None:
    """Source and digest of the weights that a run began with; None before. Raises DamagedError."""
    if run_dir is None or not (path := run_dir / _RECORD).exists():
        return None
    known = read_json(path, "record of the weights that a run began with")
    with reading(path, "record of the weights that a run began with"):
        return known | {"source": str(known["source"]), "sha256": str(known["sha256"])}


def record(run_dir: Path, pretrained: Pretrained, adapted: Adapted) -> None:
    """Writes which weights a run begins with; UserError where it began with others, before its first checkpoint."""
    known = recorded(run_dir)
    if known is not None and known["sha256"] != pretrained.digest:
        raise UserError(
            f"model.weights: {pretrained.source} holds other weights than when {run_dir} was begun; bring those back, "
            "or start another run"
        )
    head = "comes along" if adapted.why is None else f"starts afresh: {adapted.why}"
    content = {"source": pretrained.source, "sha256": pretrained.digest, "head": head, "notes": list(adapted.notes)}
    write_text(run_dir / _RECORD, json.dumps(content, indent=2) + "\n")
    for note in adapted.notes if known is None else ():  # a run that goes back to its start has told
        _log.warning("%s: %s", pretrained.source, note)


def replaced(
    fresh: TrainState, weights: Mapping[str, Any], model_state: Tree, optimizer: optax.GradientTransformation
) -> TrainState:
    """A fresh state with these weights where they have them, and with the moments and the average of such a start."""
    params, frozen = (
        {name: np.array(weights.get(name, leaf)) for name, leaf in part.items()}
        for part in (fresh.params, fresh.frozen)
    )
    average = {} if not fresh.ema else jax.tree.map(np.array, {"params": params, "model_state": model_state})
    moments = jax.jit(optimizer.init)(params)
    return replace(fresh, params=params, frozen=frozen, model_state=model_state, opt_state=moments, ema=average)


def between(original: Mapping[str, Any], trained: Tree, share: float) -> Tree:
    """(1 - share) * original + share * trained of each array that both have; of others the trained one.

    WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903, equation 1).
    """
    a = np.float32(share)
    return {
        name: (1 - a) * original[name] + a * np.asarray(leaf) if name in original else leaf
        for name, leaf in trained.items()
    }
