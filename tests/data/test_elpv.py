"""The solar cells, against the package's own loader and the published split."""

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from jaxtrain.config import DataConfig
from jaxtrain.data.decode import read_image
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import UserError

utils = pytest.importorskip("elpv_dataset.utils")


@pytest.fixture(scope="module")
def package():
    return utils.load_dataset()


@pytest.mark.slow
@pytest.mark.parametrize("split", [0, 2])
def test_the_split_is_the_published_one(split, package):
    images, probability, kind = package
    dataset = load_dataset(DataConfig(name=f"elpv:{split}", channels=3))
    test = dataset.open_test()
    groups = [f"{p:.2f} {k}" for p, k in zip(probability, kind, strict=True)]
    _, places = train_test_split(np.arange(2624), test_size=0.25, stratify=groups, random_state=split)
    places = np.sort(places)
    assert len(test) == 656
    np.testing.assert_array_equal(test.labels, probability[places] >= 0.5)
    for index in (0, 17, 655):
        pixels = read_image(test, index, channels=3, max_pixels=10**6)
        np.testing.assert_array_equal(pixels, np.repeat(images[places[index]][..., None], 3, axis=2))
    assert dataset.class_counts.sum() + len(dataset.val) == 1968


def test_no_test_image_is_trained_on():
    dataset = load_dataset(DataConfig(name="elpv"))
    parts = [set(map(str, source.paths)) for source in (dataset.train, dataset.val, dataset.open_test())]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 2624


def test_a_split_that_is_no_number():
    with pytest.raises(UserError, match="'elpv:first': the split must be a number"):
        load_dataset(DataConfig(name="elpv:first"))
