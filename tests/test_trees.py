from __future__ import annotations

import numpy as np

from jaxtrain.trees import flat, nested


def test_flat_and_nested_are_inverse() -> None:
    scale, bias = np.ones(2), np.zeros(3)
    tree = {"blocks": {"0": {"norm": {"scale": scale}}, "10": {"bias": bias}}, "head": bias}
    names = flat(tree)
    assert list(names) == ["blocks/0/norm/scale", "blocks/10/bias", "head"]
    assert names["blocks/0/norm/scale"] is scale
    assert nested(names) == tree
    assert flat({"blocks": {0: {"bias": bias}}, "empty": {}}).keys() == {"blocks/0/bias"}
