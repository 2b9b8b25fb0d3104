"""Checkpoints of made-up states, shared by the tests of them."""

from pathlib import Path

import numpy as np

from jaxtrain.training.checkpoints import Checkpoints, Restored
from jaxtrain.trees import tree_digest


def state(step: int) -> dict:
    generator = np.random.default_rng(step)
    return {
        "params": {"kernel": generator.standard_normal((20, 30)).astype(np.float32), "bias": np.zeros(3)},
        "key": generator.integers(0, 2**32, 2, np.uint32),
        "step": np.array(step, np.int32),
    }


def weights(step: int) -> dict:
    return {"params": {"kernel": np.random.default_rng(1000 + step).standard_normal((20, 30))}}


def assert_is_step(restored: Restored | None, step: int, best: int | None) -> None:
    assert restored is not None
    assert restored.step == step
    assert tree_digest(restored.state) == tree_digest(state(step))
    if best is None:
        assert restored.best is None
    else:
        assert restored.best is not None
        assert tree_digest(restored.best) == tree_digest(weights(best))
    assert restored.meta == {"history": list(range(step))}


def save(kept: Checkpoints, step: int, best: int | None = None) -> None:
    kept.save(step, state(step), {"history": list(range(step))}, None if best is None else (best, weights(best)))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
