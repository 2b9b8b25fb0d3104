import errno
import fcntl
import json
import os
import shutil

import numpy as np
import pytest

from jaxtrain.embeddings.admin import entries, export, matching, prunable, remove, verify
from jaxtrain.embeddings.files import Use
from jaxtrain.embeddings.store import EmbeddingStore
from jaxtrain.errors import RunError, UserError
from tests.embeddings.made import DIM, SHARD, Backbone, contents, images, key_of, vectors

COUNT = 70
DAY = 86400


def fill(root, seed=0, count=COUNT, **changes):
    source = images(count, seed)
    return EmbeddingStore(root, shard_images=SHARD).get(key_of(source, **changes), source, Backbone()).path


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    root = tmp_path_factory.mktemp("filled")
    for seed in range(3):
        folder = fill(root, seed)
        os.utime(folder / "used", (1e9 - seed * DAY,) * 2)
    return root


@pytest.fixture
def store(filled, tmp_path):
    shutil.copytree(filled, tmp_path / "store")
    return tmp_path / "store"


def test_everything_is_listed_the_last_used_first(store):
    found = entries(store)
    assert [entry.meta.key.images for entry in found] == [key_of(images(COUNT, seed)).images for seed in range(3)]
    first = found[0]
    assert (first.complete, first.shards, first.meta.images, first.meta.dim, first.problem) == (True, 3, 70, 8, None)
    assert first.bytes == sum(map(len, contents(first.folder).values()))
    assert [round((1e9 - entry.used) / DAY) for entry in found] == [0, 1, 2]
    assert entries(store / "nothing") == []


def test_what_is_broken_or_foreign_is_listed_with_its_reason(store, tmp_path):
    first, second, third = [entry.folder for entry in entries(store)]
    (first / "meta.json").write_text("{}")
    (second / "00001.npy").unlink()
    (third / "00000.npy").rename(tmp_path / "elsewhere")
    (third / "00000.npy").symlink_to(tmp_path / "elsewhere")
    for foreign in ("notes", "ab", "ab/notes", "ab/" + "0" * 64):
        (store / foreign).mkdir()
    (store / "ab" / ("ab" * 32)).symlink_to(first)
    (store / "cd").symlink_to(store / "ab")
    found = {entry.folder: entry for entry in entries(store)}
    assert set(found) == {first, second, third}
    assert found[first].problem == "meta.json changed"
    assert (found[second].problem, found[second].complete, found[second].shards) == (None, False, 2)
    assert "is a symbolic link" in found[third].problem
    assert verify(found[first]) == ["meta.json changed"]
    assert verify(found[second]) == []
    assert "symbolic link" in verify(found[third])[0]


def test_embeddings_of_another_version_are_named_as_such(store, monkeypatch):
    monkeypatch.setattr("jaxtrain.embeddings.files.EXTRACTION_VERSION", 2)
    expected = "meta.json was made by another version of jaxtrain (1, not 2)"
    assert {entry.problem for entry in entries(store)} == {expected}


@pytest.mark.parametrize("change", ["format", "images", "dim", "key.pool", "extra", "key.extra", "dtype"])
def test_a_description_is_checked_in_every_field(store, change):
    path = entries(store)[0].folder / "meta.json"
    body = json.loads(path.read_text())
    *outer, name = change.split(".")
    node = body[outer[0]] if outer else body
    node[name] = {"format": 2, "images": 0, "dim": "8", "dtype": "object"}.get(name, "x")
    path.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")
    assert "meta.json" in {entry.folder: entry for entry in entries(store)}[path.parent].problem


def test_keys_are_found_by_their_first_digits(store):
    found = entries(store)
    digest = found[1].digest
    assert matching(found, [digest[:8], found[0].digest]) == [found[1], found[0]]
    assert matching(found, [digest[:8].upper()]) == [found[1]]
    for prefix in ("", "zz"):
        with pytest.raises(UserError, match=f"key {prefix}: .* embeddings have it; valid: .*{digest[:12]}"):
            matching(found, [prefix])
    with pytest.raises(UserError, match="the store is empty"):
        matching([], ["ab"])


def test_every_damaged_byte_is_found(store):
    entry = entries(store)[0]
    for name, data in contents(entry.folder).items():
        for place in range(0, len(data), 29):
            (entry.folder / name).write_bytes(data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :])
            here = next(each for each in entries(store) if each.folder == entry.folder)
            assert verify(here), (name, place)
        (entry.folder / name).write_bytes(data)
    assert verify(entries(store)[0]) == []


# --- export ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("labelled", [False, True])
def test_exported_embeddings_come_back(store, tmp_path, suffix, labelled):
    entry, source = entries(store)[0], images(COUNT)
    labels = source.labels if labelled else None
    path = tmp_path / "new folder" / f"out{suffix}"
    export(entry, path, labels)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            assert set(file.files) == {"meta", "embeddings"} | ({"labels"} if labelled else set())
            rows, meta = file["embeddings"], json.loads(str(file["meta"]))
            got = file["labels"] if labelled else None
    else:
        from pyarrow import parquet

        table = parquet.read_table(path)
        assert table["image"].to_pylist() == list(range(COUNT))
        rows = np.array(table["embedding"].to_pylist(), np.float32)
        meta = json.loads(table.schema.metadata[b"jaxtrain"])
        got = table["label"].to_numpy() if labelled else None
        assert ("label" in table.column_names) == labelled
    assert np.array_equal(rows, vectors(source))
    assert rows.shape == (COUNT, DIM)
    assert meta["key"] == entry.meta.key.model_dump(mode="json")
    if labelled:
        assert np.array_equal(got, labels)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_nan_rows_survive_an_export(tmp_path):
    from pyarrow import parquet

    source = images(5)
    rows = vectors(source)
    rows[2] = np.nan
    EmbeddingStore(tmp_path / "store").get(key_of(source), source, lambda part: [rows])
    (entry,) = entries(tmp_path / "store")
    export(entry, tmp_path / "x.parquet")
    back = np.array(parquet.read_table(tmp_path / "x.parquet")["embedding"].to_pylist(), np.float32)
    assert np.array_equal(back, rows, equal_nan=True)


def test_an_export_that_cannot_be_is_refused(store, tmp_path, monkeypatch):
    first, second, third = entries(store)
    (tmp_path / "there.npz").write_text("mine")
    with pytest.raises(UserError, match=r"there\.npz exists"):
        export(first, tmp_path / "there.npz")
    with pytest.raises(UserError, match=r"end in \.npz or \.parquet"):
        export(first, tmp_path / "x.csv")
    for labels in (np.zeros(COUNT - 1, int), np.zeros((COUNT, 1), int), np.zeros(COUNT)):
        with pytest.raises(UserError, match="one for each of 70 images"):
            export(first, tmp_path / "x.npz", labels)
    (second.folder / "00001.npy").write_bytes(b"")
    with pytest.raises(RunError, match=r"damaged \(00001\.npy has another size\)"):
        export(second, tmp_path / "x.npz")
    (third.folder / "00001.npy").unlink()
    with pytest.raises(RunError, match="not complete"):
        export(next(entry for entry in entries(store) if entry.folder == third.folder), tmp_path / "x.npz")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for suffix in (".npz", ".parquet"):
        with pytest.raises(RunError, match="no space on the disk"):
            export(first, tmp_path / f"x{suffix}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "there.npz"]
    assert (tmp_path / "there.npz").read_text() == "mine"


# --- prune ----------------------------------------------------------------------------------------


def test_what_is_old_or_too_much_is_chosen(store):
    found = entries(store)
    size = found[0].bytes
    now = 1e9 + 1
    assert {entry.bytes for entry in found} == {size}
    for options, chosen in [
        ({"unused_days": 0.5}, found[1:]),
        ({"unused_days": 1.5}, found[2:]),
        ({"unused_days": 3}, []),
        ({"unused_days": 0}, found),
        ({"max_bytes": 3 * size}, []),
        ({"max_bytes": 3 * size - 1}, found[2:]),
        ({"max_bytes": size}, found[1:]),
        ({"max_bytes": 0}, found),
        ({"unused_days": 1.5, "max_bytes": size}, found[1:]),
        ({}, []),
    ]:
        assert prunable(found, now=now, **options) == chosen, options
        assert prunable(found[::-1], now=now, **options) == chosen, options


def test_what_is_removed_is_gone_and_the_rest_stays(store):
    found = entries(store)
    kept = contents(found[0].folder)
    (store / f".pruned-{'0' * 64}").mkdir()
    assert remove(found[1])
    assert [entry.digest for entry in entries(store)] == [found[0].digest, found[2].digest]
    assert contents(found[0].folder) == kept
    assert not list(store.glob(".pruned-*"))
    assert fill(store, seed=1) == found[1].folder


def test_what_is_computed_or_read_is_not_removed(store):
    first, second, _ = entries(store)
    use = Use(second.folder)
    source = images(COUNT)
    opened = EmbeddingStore(store, shard_images=SHARD).get(key_of(source), source, Backbone())
    assert (opened.computed, remove(first), remove(second)) == (0, False, False)
    assert np.array_equal(opened.load(), vectors(source))
    use.close()
    del opened
    assert (remove(first), remove(second)) == (True, True)
    assert len(entries(store)) == 1


def test_what_is_removed_just_before_it_is_asked_for_is_made_again(tmp_path, monkeypatch):
    folder = fill(tmp_path)
    flock, times = fcntl.flock, []

    def prune_first(descriptor, operation):
        if not times:
            times.append(1)
            shutil.rmtree(folder)
        flock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", prune_first)
    source = images(COUNT)
    assert EmbeddingStore(tmp_path, shard_images=SHARD).get(key_of(source), source, Backbone()).computed == COUNT
