"""Damage, links, and disks that are full or closed: what the embedding store makes of them."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.embeddings import extraction as embedding_extraction
from jaxtrain.embeddings import files as embedding_files
from jaxtrain.embeddings.store import EmbeddingStore
from jaxtrain.errors import RunError, UserError
from tests.embeddings import made
from tests.embeddings.made import COUNT, DIM, SHARD, Backbone, contents, fill, images, key_of, vectors

ROOT = Path(__file__).resolve().parents[2]
SHARDS = 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished store that nothing disturbed."""
    return fill(tmp_path_factory.mktemp("whole")).path


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "bit": flip,
    "first bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "foreign": lambda path: path.write_bytes(b"[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_before_use_and_mended(tmp_path, whole, caplog, damage):
    source = images(COUNT)
    for name in contents(whole):
        if name == "used":
            continue
        folder = tmp_path / name / whole.parent.name / whole.name
        shutil.copytree(whole, folder)
        DAMAGES[damage](folder / name)
        caplog.clear()
        backbone = Backbone()
        found = fill(tmp_path / name, source, backbone)
        assert np.array_equal(found.load(), vectors(source))
        here = contents(folder)
        aside = {path for path in here if path.endswith(".corrupt")}
        assert {path: data for path, data in here.items() if path not in aside} == contents(whole), name
        shard = 0 if name == "meta.json" else COUNT - 9 * SHARD if name.startswith("00009") else SHARD
        assert backbone.seen == shard, name
        digest_lost = damage == "missing" and name.endswith(".json") and name != "meta.json"
        assert len(aside) == (damage != "missing" or digest_lost), name
        assert bool(caplog.records) == bool(aside)


def test_everything_damaged_is_everything_again(tmp_path, whole):
    folder = tmp_path / whole.parent.name / whole.name
    shutil.copytree(whole, folder)
    for path in folder.iterdir():
        path.write_bytes(b"")
    assert fill(tmp_path).computed == COUNT
    assert {k: v for k, v in contents(folder).items() if not k.endswith(".corrupt")} == contents(whole)


def test_a_description_of_other_embeddings_is_not_believed(tmp_path, whole):
    other = fill(tmp_path, images(COUNT, seed=1)).path
    shutil.copy(whole / "meta.json", other / "meta.json")
    again = fill(tmp_path, images(COUNT, seed=1))
    assert np.array_equal(again.load(), vectors(images(COUNT, seed=1)))
    assert (again.computed, (other / "meta.json.corrupt").exists()) == (0, True)


def test_shards_keep_the_size_with_which_they_were_begun(tmp_path, whole):
    folder = tmp_path / whole.parent.name / whole.name
    shutil.copytree(whole, folder)
    (folder / "00002.npy").unlink()
    source = images(COUNT)
    assert EmbeddingStore(tmp_path, shard_images=50).get(key_of(source), source, Backbone()).computed == SHARD
    assert contents(folder) == contents(whole)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["file", "folder", "parent", "pipe", "folder for a file"])
def test_links_and_pipes_inside_the_store_are_refused(tmp_path, whole, level):
    folder = tmp_path / "store" / whole.parent.name / whole.name
    shutil.copytree(whole, folder)
    place = {"folder": folder, "parent": folder.parent}.get(level, folder / "00002.npy")
    elsewhere = tmp_path / "elsewhere"
    place.rename(elsewhere)
    if level == "pipe":
        os.mkfifo(place)
    elif level == "folder for a file":
        place.mkdir()
    else:
        place.symlink_to(elsewhere)
    before = elsewhere.stat().st_mtime_ns
    with pytest.raises(RunError, match=f"{place.name} is (a symbolic link|nothing that)"):
        fill(tmp_path / "store")
    assert elsewhere.stat().st_mtime_ns == before


def test_a_temporary_file_that_is_a_link_is_not_written_through(tmp_path, whole):
    folder = tmp_path / whole.parent.name / whole.name
    folder.mkdir(parents=True)
    (tmp_path / "precious").write_text("mine")
    (folder / ".00000.npy.tmp").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="symbolic link"):
        fill(tmp_path)
    assert (tmp_path / "precious").read_text() == "mine"


def test_rows_that_do_not_fit_the_images_are_refused(tmp_path):
    def given(rows):
        return lambda part: iter(rows)

    for rows, message in [
        ([np.zeros((30, DIM), np.float32)], "30 embeddings came for 40 images"),
        ([np.zeros((24, DIM), np.float32)] * 2, "48 embeddings came for 40 images"),
        ([], "^0 embeddings came for 40 images"),
        ([np.zeros((40, 2, 2), np.float32)], r"\[40, 2, 2\]"),
        ([np.zeros((5, DIM), np.float32), np.zeros((5, DIM + 1), np.float32)], "8 numbers, and 9 came"),
    ]:
        with pytest.raises(RunError, match=message):
            fill(tmp_path / str(len(message)), images(40), given(rows))
    with pytest.raises(UserError, match="no images"):
        fill(tmp_path, images(0))


def test_a_full_disk_is_told_before_anything_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(RunError, match=r"kept in .*: no space on the disk: 1,058,208 bytes needed, 5 free"):
        fill(tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.npy"))
    assert fill(tmp_path).computed == COUNT


@pytest.mark.parametrize("failing", range(1, 12, 2))
def test_a_disk_that_fills_up_leaves_only_whole_shards(tmp_path, whole, monkeypatch, failing):
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"no space on the disk: .* bytes needed, .* free; free some"):
        fill(tmp_path)
    monkeypatch.undo()
    left = contents(tmp_path / whole.parent.name / whole.name)
    assert {name: left[name] for name in left if name.endswith(".npy")}.items() <= contents(whole).items()
    assert not [name for name in left if name.endswith(".tmp")]
    resumed = fill(tmp_path)
    assert resumed.computed < COUNT or failing < 7
    assert contents(resumed.path) == contents(whole)


@pytest.mark.timeout(60)
def test_the_last_shard_fails_as_loudly_as_the_others(tmp_path, monkeypatch):
    backbone = Backbone()

    def fail(self, *parts):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def compute(part):
        monkeypatch.setattr(embedding_files.ShardFiles, "write", fail)
        yield from backbone(part)

    with pytest.raises(RunError, match=r"could not be kept in .*: Input/output error"):
        fill(tmp_path, images(20), compute)
    assert backbone.seen == 20


def test_a_file_too_large_for_the_system(tmp_path, whole):
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900)); "
        f"sys.argv = ['x', {str(tmp_path)!r}, '{COUNT}', '0', '0', '1']; sys.path.insert(0, {str(ROOT)!r}); "
        f"runpy.run_path({made.__file__!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert "RunError: embeddings could not be kept in" in done.stderr
    assert "no space on the disk" in done.stderr
    assert not list(tmp_path.rglob("*.npy"))
    assert contents(fill(tmp_path).path) == contents(whole)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_store_that_can_only_be_read(tmp_path, whole, monkeypatch, code):
    root = tmp_path / "store"
    shutil.copytree(whole, root / whole.parent.name / whole.name)
    opened = os.open

    def read_only(path, flags, mode=0o777, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, flags, mode, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    assert fill(root).computed == 0
    with pytest.raises(UserError, match=f"embedding store cannot be used: .*{os.strerror(code)}; choose another"):
        fill(root, images(40, seed=3))


def test_a_store_under_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*: Not a directory; choose another with --features.store"):
        fill(tmp_path / "file" / "store")
    with pytest.raises(UserError, match="choose another"):
        fill(tmp_path / "file")


def test_an_unwritable_description_is_no_silent_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_extraction, "write_whole", lambda path, data: None)
    assert fill(tmp_path).computed == COUNT
    monkeypatch.undo()
    assert fill(tmp_path).computed == 0
