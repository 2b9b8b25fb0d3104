import hashlib

import numpy as np
import pytest

from jaxtrain.data.assemble import convert_channels
from jaxtrain.data.base import ArraySource, FileSource
from jaxtrain.data.digest import data_digest, duplicates, images_fingerprint


def _source(images, labels=None):
    labels = np.zeros(len(images)) if labels is None else labels
    return ArraySource(images, np.asarray(labels, np.int32))


def _noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 4, 1), dtype=np.uint8)


def _files(folder, contents):
    folder.mkdir()
    paths = []
    for i, data in enumerate(contents):
        (folder / str(i)).write_bytes(data)
        paths.append(folder / str(i))
    return FileSource(paths, np.zeros(len(paths), np.int32))


def test_the_fingerprint_is_the_digest_that_its_docstring_says(tmp_path):
    contents = [b"one", b"two", b"three"]
    expected = hashlib.sha256()
    for data in contents:
        expected.update(hashlib.sha256(data).digest())
    assert images_fingerprint(_files(tmp_path / "a", contents)) == expected.hexdigest()


def test_every_change_of_a_split_changes_its_digest():
    images, labels = _noise(300), np.arange(300) % 3
    base = data_digest(_source(images, labels))
    assert data_digest(_source(images.copy(), labels)) == base
    pixel = images.copy()
    pixel[299, 0, 0, 0] ^= 1
    swapped = np.arange(300)
    swapped[[0, 3]] = [3, 0]
    label = labels.copy()
    label[17] = 2 - label[17] // 2
    others = [
        _source(pixel, labels),
        _source(images[swapped], labels),
        _source(images, label),
        _source(images[:-1], labels[:-1]),
    ]
    assert len({base, *map(data_digest, others)}) == 5


def _by_hand(train, test):
    return [
        (next(i for i in range(len(train)) if np.array_equal(train[i], test[j])), j)
        for j in range(len(test))
        if any(np.array_equal(train[i], test[j]) for i in range(len(train)))
    ]


def test_equal_images_are_found():
    train, test = _noise(40), _noise(15, seed=1)
    test[3], test[9], train[20] = train[7], train[20], train[7]
    test[9] = train[20]
    test[14] = test[3]
    found = duplicates(_source(train), _source(test))
    assert found == [(7, 3), (7, 9), (7, 14)] == _by_hand(train, test)
    assert duplicates(_source(train), _source(_noise(15, seed=1))) == []


def test_files_are_compared_by_content_and_read_only_where_sizes_meet(tmp_path, monkeypatch):
    train = _files(tmp_path / "train", [b"aaa", b"bb", b"ccc", b"dddd"])
    test = _files(tmp_path / "test", [b"ccc", b"eeeee", b"xxx", b"aaa"])
    read = []

    class Spy(FileSource):
        def read(self, index):
            read.append(str(self.paths[index]))
            return super().read(index)

    spied = [Spy(source.paths, source.labels) for source in (train, test)]
    assert duplicates(*spied) == [(2, 0), (0, 3)]
    assert sorted(read) == sorted(str(p) for p in [train.paths[0], train.paths[2], *np.array(test.paths)[[0, 2, 3]]])


@pytest.mark.parametrize("empty_side", [0, 1])
def test_empty_sides_have_no_duplicates(empty_side):
    sides = [_source(_noise(5)), _source(_noise(5))]
    sides[empty_side] = _source(_noise(0))
    assert duplicates(*sides) == []


def test_images_are_compared_as_they_were_loaded_or_not_at_all(tmp_path):
    train, test = _files(tmp_path / "train", [b"aa", b"bb"]), _files(tmp_path / "test", [b"cc", b"bb"])
    decoded = ArraySource(_noise(2), train.labels, loaded=train)
    assert duplicates(decoded, test) == duplicates(train, test) == [(1, 1)]
    assert decoded.describe(1) == train.describe(1)
    assert duplicates(decoded.select(np.array([1])), test) == [(0, 1)]
    assert duplicates(_source(_noise(2)), test) is None
    assert duplicates(train, _source(_noise(2))) is None


def test_copies_with_more_channels_are_found():
    grey = _noise(9)
    colour = np.random.default_rng(5).integers(0, 256, (9, 3, 4, 3), dtype=np.uint8)
    assert duplicates(_source(grey), _source(grey[[4]].repeat(3, axis=-1))) == [(4, 0)]
    assert duplicates(_source(convert_channels(colour, 1)), _source(colour[[2, 7]])) == [(2, 0), (7, 1)]
