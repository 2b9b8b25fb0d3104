import numpy as np
import pytest
from pydantic import ValidationError

from jaxtrain.data.base import ArraySource
from jaxtrain.data.digest import images_fingerprint
from jaxtrain.embeddings import key as embedding_key
from jaxtrain.embeddings.key import EmbeddingKey
from tests.embeddings.made import images, key_of

MUTATIONS = [
    {"images": "0" * 63 + "1"},
    {"weights": "1" + "0" * 63},
    {"model": "tiny2"},
    {"model_options": {}},
    {"model_options": {"patch_size": 4}},
    {"model_options": {"patch_size": 2, "registers": [1, 2]}},
    {"model_options": {"patch_size": 4, "registers": [2, 1]}},
    {"model_options": {"patch_size": "4", "registers": [1, 2]}},
    {"image_size": 4},
    {"channels": 1},
    {"mean": (0.5, 0.5, 0.5000001)},
    {"mean": (0.5,)},
    {"std": (0.25, 0.25, 0.26)},
    {"mean": (0.25, 0.25, 0.25), "std": (0.5, 0.5, 0.5)},
    {"crop_pct": 0.9},
    {"interpolation": "bilinear"},
    {"max_pixels": 1001},
    {"pool": "cls"},
    {"blocks": 2},
    {"dtype": "bfloat16"},
    {"view": 1, "augmentation": {"seed": 0}},
    {"view": 2, "augmentation": {"seed": 0}},
    {"view": 1, "augmentation": {"seed": 1}},
    {"view": 1, "augmentation": {"seed": 0, "hflip": 0.5}},
]


def test_every_field_decides_the_address(monkeypatch):
    assert {name for change in MUTATIONS for name in change} == set(EmbeddingKey.model_fields)
    source = images(3)
    base = key_of(source)
    digests = [base.digest, *(key_of(source, **change).digest for change in MUTATIONS)]
    monkeypatch.setattr(embedding_key, "EXTRACTION_VERSION", 2)
    digests.append(key_of(source).digest)
    assert len(set(digests)) == len(MUTATIONS) + 2


def test_the_same_content_has_the_same_address():
    source = images(3)
    base = key_of(source)
    assert key_of(source, model_options={"registers": [1, 2], "patch_size": 4}).digest == base.digest
    assert key_of(source, mean=[0.5, 0.5, 0.5]).digest == base.digest
    assert key_of(source, view=1, augmentation={"p": 1}).digest == key_of(source, view=1, augmentation={"p": 1}).digest
    assert EmbeddingKey.model_validate_json(base.model_dump_json()) == base


@pytest.mark.parametrize("name", EmbeddingKey.model_fields)
def test_no_field_can_be_forgotten(name):
    fields = key_of(images(3)).model_dump()
    del fields[name]
    with pytest.raises(ValidationError, match=name):
        EmbeddingKey(**fields)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "abc"},
        {"image_size": 3.0},
        {"channels": True},
        {"crop_pct": float("nan")},
        {"mean": (0.5, float("inf"))},
        {"model_options": {"drop": float("nan")}},
        {"model_options": {"file": object()}},
        {"view": 1},
        {"view": -1},
        {"augmentation": {"seed": 0}},
        {"split": "train"},
    ],
)
def test_what_is_no_key_is_refused(change):
    with pytest.raises(ValidationError):
        key_of(images(3), **change)


def test_images_count_and_labels_do_not():
    source = images(50)
    base = images_fingerprint(source)
    relabelled = ArraySource(source.images, (source.labels + 1) % 3)
    assert images_fingerprint(relabelled) == base == images_fingerprint(source.select(np.arange(50)))
    pixel = source.images.copy()
    pixel[49, 2, 2, 2] ^= 1
    order = np.arange(50)
    order[[10, 11]] = 11, 10
    others = [
        ArraySource(pixel, source.labels),
        source.select(order),
        source.select(np.arange(49)),
        source.select(np.append(np.arange(50), 49)),
        images(50, seed=1),
    ]
    assert len({base, *map(images_fingerprint, others)}) == 6
