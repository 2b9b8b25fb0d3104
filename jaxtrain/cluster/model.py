"""A finished run's model on a node, the same as the driver has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.classifiers.files import load
from jaxtrain.classifiers.labelling import weights_digests
from jaxtrain.errors import UserError


def load_same(run_dir: Path, digests: Sequence[str], *, trust_imports: bool) -> BaseClassifier:
    """The model with these digests. Raises UserError where this node has another one there, or none."""
    classifier = load(run_dir, trust_imports=trust_imports)
    if weights_digests(classifier) != [*digests]:
        raise UserError(f"{run_dir} holds another model on this node")
    return classifier
