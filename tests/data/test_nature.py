"""What a look at the images finds out: measured, and right about sets whose nature is known."""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits

import jaxtrain.runs.resolve
from jaxtrain import PTClassifier
from jaxtrain.config import Config
from jaxtrain.data.arrays import from_arrays
from jaxtrain.data.base import FileSource
from jaxtrain.data.known import KNOWN
from jaxtrain.data.nature import nature_of
from jaxtrain.data.sources import load_dataset
from jaxtrain.runs.resolve import resolve

PIXELS = 10**8


def digits():
    bunch = load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target


def blobs(count=600, side=12, seed=0, symmetric=True):
    """Classes by how many bright spots there are (which any flip or turn keeps), or by the corner that they lie in."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = generator.integers(0, 60, (count, side, side, 3), np.uint8)
    for image, label in zip(images, labels, strict=True):
        if symmetric:  # by the colour of a spot anywhere
            top, left = generator.integers(0, side - 5, 2)
            image[top : top + 6, left : left + 6, label] += 150
        else:
            image[:6, (0, 3, 6)[label] : (0, 3, 6)[label] + 4] += 150
    return images, labels


def test_digits_are_not_mirrored():
    nature = nature_of(from_arrays(*digits()), PIXELS)
    assert (nature.hflip, nature.vflip, nature.rotate) == (False, False, False)
    known = KNOWN["digits"]
    assert nature.mean == pytest.approx(known.mean, abs=0.01)
    assert nature.std == pytest.approx(known.std, abs=0.01)


def test_what_any_turn_keeps_is_turned():
    nature = nature_of(from_arrays(*blobs()), PIXELS)
    assert (nature.hflip, nature.vflip, nature.rotate) == (True, True, True)


def test_what_stands_left_or_right_is_not_mirrored_but_may_stand_on_its_head():
    images, labels = blobs(symmetric=False)
    nature = nature_of(from_arrays(images, labels), PIXELS)
    assert not nature.hflip
    assert not nature.vflip  # only together with left-right flips


@pytest.mark.parametrize("count", [12, 600])
def test_what_nobody_can_say_is_treated_as_photographs_are(count):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 8, 8), np.uint8)
    nature = nature_of(from_arrays(images, np.arange(count) % 2), PIXELS)
    assert (nature.hflip, nature.vflip, nature.rotate) == (True, False, False)


def test_statistics_are_those_of_all_pixels_of_the_sample():
    images, labels = blobs(90)
    dataset = from_arrays(images, labels)
    train, nature = dataset.train.images / 255, nature_of(dataset, PIXELS)
    np.testing.assert_allclose(nature.mean, train.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(nature.std, train.std((0, 1, 2)), atol=1e-4)
    grey = from_arrays(np.full((50, 8, 8), 7, np.uint8), np.arange(50) % 2)
    assert min(nature_of(grey, PIXELS).std) > 0.01


def test_files_that_cannot_be_read_are_passed_over(tmp_path):
    dataset = from_arrays(*blobs(90))
    (tmp_path / "web page.png").write_text("<html>")
    gone = FileSource([tmp_path / "gone.png", tmp_path / "web page.png"] * 20, np.arange(40, dtype=np.int32) % 2)
    assert nature_of(dataclasses.replace(dataset, train=gone, found={}), PIXELS).hflip


def test_the_same_images_give_the_same_answer_once():
    one, other = from_arrays(*digits()), from_arrays(*digits())
    first = nature_of(one, PIXELS)
    assert nature_of(other, PIXELS) == first
    assert nature_of(dataclasses.replace(one, name="copy"), PIXELS) is first


@pytest.mark.slow
def test_a_run_takes_what_was_found_and_a_resumed_one_does_not_look_again(tmp_path, monkeypatch, capsys):
    looks = []
    monkeypatch.setattr(jaxtrain.runs.resolve, "nature_of", lambda *given: looks.append(1) or nature_of(*given))
    options = {"model": {"name": "mlp_tiny"}, "train": {"steps": 2}, "tracking": {"enabled": False}}
    model = PTClassifier(run_dir=tmp_path, **options).fit(*digits())
    config = model.fitted.config
    augment = config.augment
    assert (augment.hflip, augment.vflip, augment.rotate, augment.mixup) == (0, 0, 0, 0)
    assert config.data.mean == pytest.approx((0.306,), abs=0.01)
    said = "".join(capsys.readouterr()).count("left-right off")
    assert len(looks) == 1
    (tmp_path / "summary.json").unlink()
    again = PTClassifier(run_dir=tmp_path, **options).fit(*digits())
    assert len(looks) == 1
    assert again.fitted.config.augment == config.augment
    assert said == 1


@pytest.mark.parametrize(
    ("options", "looked"),
    [
        ({}, True),
        ({"augment": {"hflip": 0.5, "vflip": 0.0, "rotate": 0.0}}, True),  # mean and deviation are still open
        ({"augment": {"policy": "none"}, "data": {"mean": (0.5,), "std": (0.5,)}}, False),
        ({"augment": {"policy": "light"}, "data": {"mean": (0.5,), "std": (0.5,)}}, False),
    ],
)
def test_a_look_is_taken_where_something_is_open(options, looked):
    dataset, config = from_arrays(*digits()), Config(technique="pt", quiet=True, **options)
    augment = resolve(config, dataset).augment
    assert bool(dataset.found) == looked
    given = options.get("augment", {}).get("hflip")
    assert augment.hflip == given if given is not None else True


def test_known_sets_are_not_looked_at():
    dataset = load_dataset(Config().data)
    resolve(Config(technique="pt", quiet=True), dataset)
    assert dataset.found == {}


def test_given_flips_stay():
    config = resolve(Config(technique="pt", quiet=True, augment={"vflip": 0.0}), from_arrays(*blobs()))
    assert (config.augment.hflip, config.augment.vflip, config.augment.rotate) == (0.5, 0.0, 180.0)
