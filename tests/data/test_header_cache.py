"""Headers of many files are read once, and again of those that have changed."""

import numpy as np
import pytest
from PIL import Image

from jaxtrain.data import header_cache
from jaxtrain.data.base import FileSource
from jaxtrain.data.header_cache import scan


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(header_cache, "_SLOW_SECONDS", 0.0)
    (tmp_path / "bad.png").write_bytes(b"<html>")
    for i in range(5):
        Image.fromarray(np.zeros((4 + i, 6), np.uint8)).save(tmp_path / f"{i}.png")
    return [*(tmp_path / f"{i}.png" for i in range(5)), tmp_path / "bad.png", tmp_path / "gone.png"]


@pytest.fixture
def read(monkeypatch):
    """The files whose headers are read."""
    seen, real = [], header_cache.header_of_file
    monkeypatch.setattr(header_cache, "header_of_file", lambda path: seen.append(path) or real(path))
    return seen


def look(files, max_pixels=1000):
    return scan(FileSource(files, np.zeros(len(files), np.int32)), max_pixels)


def test_a_second_look_reads_what_has_changed_alone(files, read):
    first = look(files)
    assert len(read) == 7
    read.clear()
    again = look(files)
    assert read == [str(files[6])]  # which may have come meanwhile
    np.testing.assert_array_equal(first.sizes, again.sizes)
    assert (first.bad, first.grey.tolist()) == (again.bad, again.grey.tolist())
    assert first.sizes[:5, 0].tolist() == [4, 5, 6, 7, 8]
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(files[2])
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(files[5], "PNG")
    read.clear()
    changed = look(files)
    assert sorted(read) == sorted(map(str, (files[2], files[5], files[6])))
    assert changed.sizes[[2, 5]].tolist() == [[9, 9], [3, 3]]
    assert list(changed.bad) == [6]
    assert look(files).sizes.tolist() == changed.sizes.tolist()


def test_the_limit_of_pixels_is_not_part_of_it(files):
    assert list(look(files).bad) == [5, 6]
    assert list(look(files, max_pixels=40).bad) == [3, 4, 5, 6]


def test_a_damaged_cache_is_none(files, tmp_path):
    first = look(files)
    (kept,) = (tmp_path / "cache/jaxtrain/headers").iterdir()
    kept.write_bytes(b"x")
    assert look(files).sizes.tolist() == first.sizes.tolist()
