"""Which outputs of weights stand for the classes of a set."""

import numpy as np
import pytest

from jaxtrain.config import ModelConfig
from jaxtrain.errors import UserError
from jaxtrain.models.weights import Pretrained
from jaxtrain.models.weights.classes import match_classes


def weights(count, names=None):
    nothing = np.zeros(1, np.float32)
    return Pretrained(
        source="w.npz",
        model=ModelConfig(),
        params={"head/kernel": nothing},
        model_state={},
        image_size=32,
        channels=3,
        mean=(0.5,),
        std=(0.5,),
        crop_pct=1.0,
        interpolation="bilinear",
        class_names=names,
        num_classes=count,
        digest="",
    )


TRANSFORMERS = ("tench, Tinca tinca", "goldfish, Carassius auratus", *(f"class {i}" for i in range(998)))


@pytest.mark.parametrize(
    ("known", "names", "places", "how"),
    [
        (weights(3, ("cat", "dog", "bird")), ("bird", "cat"), (2, 0), "name"),
        (weights(3, ("cat", "Great_Dane", "bird")), ("great dane", "CAT"), (1, 0), "name"),
        (weights(3, ("cat", "Cat", "bird")), ("Cat", "bird"), (1, 2), "name"),
        (weights(1000, TRANSFORMERS), ("goldfish", "Tinca tinca"), (1, 0), "name"),
        (weights(1000), ("n01440764", "n02099601", "n15075141"), (0, 207, 999), "WordNet id"),
        (weights(1000), ("n02099601 golden retriever", "n01440764_tench"), (207, 0), "WordNet id"),
        (weights(1000, TRANSFORMERS), ("n01443537", "n02099601"), (1, 207), "WordNet id"),
        (weights(3), ("cat", "dog", "bird"), (0, 1, 2), "place"),
        (weights(12), ("0", "10", "2"), (0, 10, 2), "place"),
        (weights(3, ("7", "8", "9")), ("9", "8"), (2, 1), "name"),
    ],
)
def test_classes_are_matched(known, names, places, how):
    matched = match_classes(names, known)
    assert matched.places == places
    assert how in matched.how


@pytest.mark.parametrize(
    ("known", "names", "reason"),
    [
        (weights(3, ("cat", "dog", "bird")), ("cat", "dgo"), "'dgo'.*'dog'"),
        (weights(3), ("cat", "dog"), "3 classes without names"),
        (weights(1001), ("n01440764", "n02099601"), "1001 classes"),
        (weights(2), ("n01440764", "n02099601"), "n01440764"),
        (weights(1000), ("n01440764", "n99999999"), "n99999999"),
        (weights(3), ("0", "3"), "'3'"),
        (weights(3, ("cat", "dog", "bird")), ("cat", "Cat"), "cat and Cat"),
    ],
)
def test_classes_that_are_none_of_the_weights_are_refused(known, names, reason):
    with pytest.raises(UserError, match=reason):
        match_classes(names, known)
