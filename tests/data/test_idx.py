import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.config import DataConfig
from jaxtrain.data.idx import read_idx
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import DamagedError, UserError


def _idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _write(folder, prefix="", test="t10k", dot="-", compress=False, labels=None, count=20):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(count)
    made = {}
    for split, n in (("train", count), (test, count // 2)):
        images = rng.integers(0, 256, (n, 4, 6), dtype=np.uint8)
        values = np.resize(np.arange(10) if labels is None else labels, n).astype(np.uint8)
        made[split] = (images, values)
        for kind, array in (("images", images), ("labels", values)):
            name = f"{prefix}{split}-{kind}{dot}idx{array.ndim}-ubyte"
            data = _idx(array)
            (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(data) if compress else data)
    return made


def _load(path, **options):
    return load_dataset(DataConfig(name=f"idx:{path}", val_fraction=0.0, **options))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dot", ["-", "."])
def test_the_files_of_the_mnist_family(tmp_path, compress, dot):
    made = _write(tmp_path / "m", dot=dot, compress=compress)
    data = _load(tmp_path / "m")
    np.testing.assert_array_equal(data.train.images[..., 0], made["train"][0])
    np.testing.assert_array_equal(data.train.labels, made["train"][1])
    np.testing.assert_array_equal(data.open_test().images[..., 0], made["t10k"][0])
    assert data.class_names == tuple("0123456789")
    assert data.uniform_size == (4, 6)
    assert data.flips is False


def test_fashion_is_known_by_the_folders_name(tmp_path):
    for folder in (tmp_path / "fashion-mnist", tmp_path / "FashionMNIST" / "raw"):
        folder.mkdir(parents=True)
        _write(folder)
        data = _load(folder)
        assert data.class_names[9] == "Ankle boot"
        assert data.flips is True
        assert data.mean == (0.2860,)


def test_one_of_several_sets_is_picked_by_its_prefix(tmp_path):
    _write(tmp_path / "e", prefix="emnist-balanced-", test="test")
    made = _write(tmp_path / "e", prefix="emnist-letters-", test="test", labels=[1, 2, 26])
    mapping = "\n".join(f"{i} {96 + i} {64 + i}" for i in range(1, 27))
    (tmp_path / "e" / "emnist-letters-mapping.txt").write_text(mapping)
    with pytest.raises(UserError, match=r"holds 2 sets: choose one of .*emnist-balanced, .*emnist-letters"):
        _load(tmp_path / "e")
    data = _load(tmp_path / "e" / "emnist-letters")
    # EMNIST's images lie transposed in their files.
    np.testing.assert_array_equal(data.train.images[..., 0], made["train"][0].transpose(0, 2, 1))
    assert data.class_names == tuple("abcdefghijklmnopqrstuvwxyz")
    assert data.train.labels[:3].tolist() == [0, 1, 25]
    assert data.open_test().labels[:3].tolist() == [0, 1, 25]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_idx(np.zeros((3, 2, 2), np.uint8))[:-1], r"shape \[3, 2, 2\] needs 12 bytes, it has 11"),
        (_idx(np.zeros((3, 2, 2), np.uint8)) + b"x", "needs 12 bytes, it has 13"),
        (gzip.compress(_idx(np.zeros((99, 9), np.uint8)), mtime=0)[:-9], "Compressed file ended"),
        (gzip.compress(bytes(1000), mtime=0)[:20] + b"junk" * 20, "not a sound IDX file"),
        (b"\0\0\x08\x03\0\0", "ends within its header"),
        (b"\0\0\x0d\x01\0\0\0\x01abcd", "IDX type 0x0d, not unsigned bytes"),
        (b"PK\x03\x04....", "begins with 50 4b 03 04, not 00 00 08"),
        (b"", "begins with nothing"),
    ],
    ids=["short", "long", "gzip-short", "gzip-junk", "header-short", "wrong-type", "zip", "empty"],
)
def test_wrong_and_damaged_files_are_named(tmp_path, data, message):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(DamagedError, match=message) as caught:
        read_idx(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no IDX files: expected train-images-idx3-ubyte"):
        _load(tmp_path)
    _write(tmp_path / "m")
    (tmp_path / "m" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte has no labels file"):
        _load(tmp_path / "m")
    (tmp_path / "m" / "t10k-images-idx3-ubyte").unlink()
    assert _load(tmp_path / "m").open_test() is None
    for file in (tmp_path / "m").iterdir():
        file.rename(file.with_name(file.name.replace("train", "t10k")))
    with pytest.raises(UserError, match="no training images"):
        _load(tmp_path / "m")
    with pytest.raises(UserError, match="is a file: give the folder"):
        _load(next((tmp_path / "m").iterdir()))


def test_images_and_labels_of_different_counts_are_refused(tmp_path):
    _write(tmp_path / "m")
    (tmp_path / "m" / "train-labels-idx1-ubyte").write_bytes(_idx(np.zeros(19, np.uint8)))
    with pytest.raises(UserError, match="20 images and 19 labels"):
        _load(tmp_path / "m")
    (tmp_path / "m" / "train-labels-idx1-ubyte").write_bytes(_idx(np.zeros((20, 1), np.uint8)))
    with pytest.raises(UserError, match="has 3 dimensions, its labels 2"):
        _load(tmp_path / "m")


def test_the_path_is_a_plain_one(tmp_path, monkeypatch):
    _write(tmp_path / "m")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(_load(Path("~/m")).train) == 20
