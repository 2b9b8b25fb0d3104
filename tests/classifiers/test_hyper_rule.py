"""What fine-tuning chooses by itself, by the table in hyper_rule.py."""

import numpy as np
import pytest

from jaxtrain.classifiers.hyper_rule import hyper_rule
from jaxtrain.config import Config, ModelConfig
from jaxtrain.data.base import ArraySource, Dataset
from jaxtrain.models.weights import Pretrained


def dataset(images, side=300, classes=10):
    labels = np.arange(images, dtype=np.int32) % classes
    source = ArraySource(np.broadcast_to(np.uint8(0), (images, 1, 1, 3)), labels)
    size = None if side is None else (side, side)
    return Dataset("set", tuple(map(str, range(classes))), source, None, lambda: None, 3, size)


def pretrained(model="efficientnet_lite0", side=224, **options):
    half = (0.5,) * 3
    return Pretrained(
        "w", ModelConfig(name=model, **options), {}, {}, side, 3, half, half, 1.0, "bilinear", None, 0, ""
    )


def chosen(images=1000, weights=None, side=300, **options):
    return hyper_rule(Config(technique="ft", **options), dataset(images, side), weights or pretrained())


@pytest.mark.parametrize(
    ("images", "epochs", "mixup"),
    [(100, 30, 0.0), (20_000, 12.8, 0.0), (20_001, 30, 0.1), (500_000, 10.24, 0.1), (1_281_167, 7.99, 0.1)],
)
def test_length_and_mixup_follow_the_number_of_images(images, epochs, mixup):
    config = chosen(images)
    assert config.train.epochs == pytest.approx(epochs)
    assert config.augment.mixup == mixup


def test_few_shot_sets_count_their_shots():
    assert chosen(500_000, data={"shots": 10}).augment.mixup == 0.0


@pytest.mark.parametrize(
    ("side", "weights", "expected"),
    [
        (32, pretrained(), 128),
        (95, pretrained("vit_small_patch14_dinov2", 518), 126),
        (95, pretrained("vit_small_patch16_224", 210, patch_size=10), 120),
        (96, pretrained(), 224),
        (None, pretrained(), 224),
        (28, pretrained("cnn_small", 28), 28),
        (28, pretrained("cnn_small", 8), 8),
    ],
)
def test_small_images_are_enlarged_less(side, weights, expected):
    assert chosen(side=side, weights=weights).data.image_size == expected


def test_few_or_fresh_parameters_take_larger_steps():
    full, head, lora = (chosen(finetune={"strategy": name}) for name in ("full", "head", "lora"))
    assert full.finetune.head_learning_rate == head.optimizer.learning_rate == lora.optimizer.learning_rate
    assert full.finetune.head_learning_rate == pytest.approx(10 * full.optimizer.learning_rate)
    assert (lora.finetune.lora_rank, lora.finetune.lora_alpha) == (4, 8.0)
    assert chosen(finetune={"strategy": "blocks"}).finetune.blocks == 1
    assert chosen(finetune={"strategy": "head"}, optimizer={"learning_rate": 0.5}).finetune.head_learning_rate == 0.5
    sgd = chosen(optimizer={"name": "sgd"})
    assert sgd.optimizer.learning_rate > full.optimizer.learning_rate


def test_what_is_given_stays():
    config = chosen(
        train={"steps": 7},
        data={"image_size": 64},
        optimizer={"learning_rate": 0.5},
        finetune={"head_learning_rate": 0.25},
        augment={"mixup": 0.4},
    )
    assert (config.train.steps, config.train.epochs) == (7, None)
    assert (config.data.image_size, config.augment.mixup) == (64, 0.4)
    assert (config.optimizer.learning_rate, config.finetune.head_learning_rate) == (0.5, 0.25)
