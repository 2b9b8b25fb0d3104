"""PTClassifier: everything is learned, from a seed or from the weights of another run."""

from __future__ import annotations

from typing import ClassVar

from jaxtrain.classifiers.base import BaseClassifier


class PTClassifier(BaseClassifier):
    """Pre-training from scratch: all parameters of the network start from `config.seed`, or from
    `model.weights` to go on where another run ended, and get gradients.

    It is `BaseClassifier` as it stands: supervised cross-entropy on augmented images.
    """

    technique: ClassVar[str] = "pt"
