import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.embeddings import extraction
from jaxtrain.embeddings import files as embedding_files
from jaxtrain.embeddings.store import EmbeddingStore
from jaxtrain.errors import RunError
from tests.embeddings import made
from tests.embeddings.made import COUNT, DIM, SHARD, Backbone, contents, fill, images, key_of, vectors

ROOT = Path(__file__).resolve().parents[2]
SHARDS = 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished store that nothing disturbed."""
    return fill(tmp_path_factory.mktemp("whole")).path


def start(root, seconds=0.0, index=0, processes=1):
    command = [sys.executable, made.__file__, str(root), *map(str, (COUNT, seconds, index, processes))]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, **pipes)


def together(processes):
    """Images that each computed, all beginning when the last one is ready."""
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), results
    return [int(output) for output, _ in results]


def test_vectors_are_computed_once_and_read_as_they_were(tmp_path):
    source, backbone, told = images(COUNT), Backbone(), []
    first = fill(tmp_path, source, backbone, progress=lambda done, total: told.append((done, total)))
    expected = vectors(source)
    assert (len(first), first.dim, first.computed, backbone.seen) == (COUNT, DIM, COUNT, COUNT)
    assert told[-1] == (COUNT, COUNT)
    assert told == sorted(told)
    second = fill(tmp_path, source, backbone)
    assert (second.computed, backbone.seen) == (0, COUNT)
    for found in (first, second):
        assert np.array_equal(found.load(), expected)
        assert found.load().dtype == np.float32
    assert sorted(contents(first.path)) == sorted(
        [*(f"{i:05d}.{kind}" for i in range(SHARDS) for kind in ("json", "npy")), "meta.json", "used"]
    )
    assert np.array_equal(np.load(first.path / "00001.npy", allow_pickle=False), expected[32:64])


def test_what_other_splits_have_is_not_touched(tmp_path):
    source = images(40)
    fill(tmp_path, source)
    assert fill(tmp_path, images(40, seed=1)).computed == 40
    assert fill(tmp_path, source.select(np.arange(39, -1, -1))).computed == 40
    assert fill(tmp_path, source).computed == 0


def test_nan_rows_are_kept(tmp_path):
    source = images(40)

    def compute(part):
        rows = vectors(part)
        rows[[3, 35]] = np.nan
        yield rows

    found = fill(tmp_path, source, compute).load()
    assert np.flatnonzero(np.isnan(found).all(axis=1)).tolist() == [3, 35]
    assert np.isnan(found).any(axis=1).sum() == 2


# --- interruptions --------------------------------------------------------------------------------


def test_what_progress_raises_ends_the_work_and_keeps_finished_shards(tmp_path, whole):
    def stop(done, total):
        if done > 200:
            raise KeyboardInterrupt

    kept = []

    def compute(part):
        kept.append(Backbone()(part))
        return kept[-1]

    backbone = Backbone()
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, images(COUNT), compute, progress=stop)
    assert all(rows.gi_frame is None for rows in kept), "the pipeline was left running"
    resumed = fill(tmp_path, images(COUNT), backbone)
    assert resumed.computed == backbone.seen == COUNT - 6 * SHARD
    assert contents(resumed.path) == contents(whole)


def test_an_error_of_the_backbone_or_of_an_image_is_its_own(tmp_path):
    def compute(part):
        yield vectors(part.select(np.arange(70)))
        raise FileNotFoundError(errno.ENOENT, "gone", "cat.jpg")

    with pytest.raises(FileNotFoundError, match=r"cat\.jpg"):
        fill(tmp_path, images(COUNT), compute)
    assert fill(tmp_path).computed == COUNT - 2 * SHARD


def _killing(call, steps):
    def before(*args, **kwargs):
        if next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    return before


@pytest.mark.slow
def test_killed_before_any_step_on_the_disk(tmp_path):
    """Each system call that changes the disk is, one run after the other, the last that a process gets to."""
    calls = ("replace", "fsync", "ftruncate", "open", "utime", "mkdir")
    source, key = images(50), key_of(images(50))
    for last in range(1000):
        root = tmp_path / str(last)
        if (child := os.fork()) == 0:
            steps = iter(range(last))
            for name in calls:
                setattr(os, name, _killing(getattr(os, name), steps))
            EmbeddingStore(root, shard_images=SHARD).get(key, source, Backbone())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found = EmbeddingStore(root, shard_images=SHARD).get(key, source, Backbone())
        if last == 0:
            expected = contents(found.path)
        assert contents(found.path) == expected, last
        shutil.rmtree(root)
        if status == 0:
            break
    assert last > 20


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_again_and_again_the_store_ends_the_same(tmp_path, whole, kills):
    rng = np.random.default_rng(0)
    folder = EmbeddingStore(tmp_path).path(key_of(images(COUNT)))
    done = []
    for _ in range(kills):
        process = start(tmp_path, seconds=0.1)
        process.stdout.readline()
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(rng.uniform(0, 2.0 / kills))
        process.kill()
        process.communicate()
        done.append(len(list(folder.glob("*.npy"))))
    assert done[0] < SHARDS, "finished before it was killed"
    backbone = Backbone()
    found = fill(tmp_path, images(COUNT), backbone)
    assert backbone.seen <= COUNT - SHARD * (done[-1] - 1)
    assert contents(found.path) == contents(whole)
    assert done == sorted(done)


def test_what_a_killed_write_left_is_written_over(tmp_path, whole):
    folder = tmp_path / whole.parent.name / whole.name
    folder.mkdir(parents=True)
    (folder / ".00003.npy.tmp").write_bytes(b"x" * 100_000)
    (folder / ".00003.json.tmp").write_bytes(b"x" * 100_000)
    (folder / ".meta.json.tmp").write_bytes(b"x" * 100_000)
    fill(tmp_path)
    assert contents(folder) == contents(whole)


# --- several processes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_share_the_work(tmp_path, whole):
    counts = together([start(tmp_path, seconds=0.1) for _ in range(3)])
    assert sum(counts) == COUNT
    assert sum(count > 0 for count in counts) > 1
    assert contents(tmp_path / whole.parent.name / whole.name) == contents(whole)


def test_a_large_set_has_larger_shards_and_few_open_files(tmp_path, monkeypatch):
    import resource

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    source = images(600)
    expected = vectors(source)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 130, limits[1]))
    try:
        found = EmbeddingStore(tmp_path, shard_images=1).get(key_of(source), source, Backbone())
        assert np.array_equal(found.load(), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (found.files.meta.shards, found.files.meta.shard_images) == (200, 3)


def test_threads_share_the_work(tmp_path, whole):
    backbone = Backbone(seconds=0.01)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: fill(tmp_path, images(COUNT), backbone), range(3)))
    assert backbone.seen == COUNT == sum(each.computed for each in found)
    assert contents(found[0].path) == contents(whole)


def test_hosts_of_one_job_compute_disjoint_shards(tmp_path, whole):
    counts = together([start(tmp_path, 0.01, index, 2) for index in range(2)])
    assert counts == [5 * SHARD, COUNT - 5 * SHARD]
    assert contents(tmp_path / whole.parent.name / whole.name) == contents(whole)


def test_a_host_that_gives_nothing_is_not_waited_for_without_end(tmp_path, monkeypatch):
    source, told = images(COUNT), []
    monkeypatch.setattr(extraction, "PATIENCE_SECONDS", 0.3)
    store = EmbeddingStore(tmp_path, shard_images=SHARD)
    with pytest.raises(RunError, match=r"no new embeddings from the other.* shards 1, 3, 5, 7, 9 are missing"):
        store.get(key_of(source), source, Backbone(), process_count=2, progress=lambda done, total: told.append(done))
    assert max(told) == 5 * SHARD


def test_a_forked_child_does_not_hold_its_parents_claims(tmp_path):
    claim = embedding_files.Claim.take(tmp_path / "a")
    started, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, b"!")
        time.sleep(60)
        os._exit(0)
    try:
        os.read(started, 1)
        assert embedding_files.Claim.take(tmp_path / "a") is None
        claim._close()
        assert embedding_files.Claim.take(tmp_path / "a") is not None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(started)
        os.close(write)


@pytest.mark.parametrize("event", ["published", "given back"])
def test_a_claim_is_on_the_file_that_is_there_now(tmp_path, monkeypatch, event):
    """The one before ends between the opening and the locking of its temporary file."""
    first, flock = embedding_files.Claim.take(tmp_path / "a"), fcntl.flock

    def end_first(descriptor, operation):
        monkeypatch.undo()
        first.publish() if event == "published" else first.release()
        flock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", end_first)
    second = embedding_files.Claim.take(tmp_path / "a")
    assert second is not None
    assert embedding_files.Claim.take(tmp_path / "a") is None
    second.write(b"second")
    second.publish()
    assert contents(tmp_path) == {"a": b"second"}


def test_without_locks_it_works_all_the_same(tmp_path, whole, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda seed: fill(tmp_path, images(COUNT, seed)), range(2)))
    assert contents(found[0].path) == contents(whole)
