import os
import pickle

import numpy as np

from jaxtrain.data.base import ArraySource, Dataset, FileSource, ImageSource, Subset


def _source(count=6):
    images = np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2, 1)
    return ArraySource(images, np.arange(count, dtype=np.int32) % 2, "train")


def test_a_subset_is_the_images_it_names_and_keeps_their_names():
    source = _source()
    subset = Subset(source, np.array([4, 1, 3])).select(np.array([2, 0]))
    assert isinstance(subset, ImageSource)
    assert len(subset) == 2
    np.testing.assert_array_equal(subset.read(0), source.images[3])
    np.testing.assert_array_equal(subset.read(1), source.images[4])
    np.testing.assert_array_equal(subset.labels, [1, 0])
    assert subset.describe(0) == "train image 3"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(subset)).read(1), source.images[4])


def test_selecting_of_a_memory_mapped_array_reads_nothing(tmp_path):
    np.save(tmp_path / "images.npy", _source().images)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    selected = ArraySource(images, _source().labels).select(np.array([5, 2]))
    assert isinstance(selected, Subset)
    assert selected.source.images is images
    np.testing.assert_array_equal(selected.read(0), _source().images[5])


def test_files_are_read_named_and_selected(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.bin").write_bytes(bytes([i]))
    paths = [str(tmp_path / f"{i}.bin") for i in range(3)]
    whole = FileSource(paths, np.array([0, 1, 0], np.int32), {"light": np.array(["day", "dusk", "night"])})
    source = whole.select(np.array([2, 1]))
    assert (source.read(0), source.read(1)) == (b"\2", b"\1")
    assert source.metadata["light"].tolist() == ["night", "dusk"]
    assert source.describe(0) == paths[2]
    np.testing.assert_array_equal(source.labels, [0, 1])


def test_a_name_that_is_no_utf8_is_still_printable():
    source = FileSource([os.fsdecode(b"/x/\xff.jpg")], np.zeros(1, np.int32))
    source.describe(0).encode()
    assert source.describe(0).startswith("/x/")


def test_class_counts_hold_absent_classes_too():
    data = Dataset("x", ("a", "b", "c"), _source(), None, lambda: None, 1, (2, 2))
    assert data.num_classes == 3
    assert data.class_counts.tolist() == [3, 3, 0]
