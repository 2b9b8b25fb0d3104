import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from jaxtrain.config import Config, DataConfig
from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import ArraySource, Dataset, FileSource, ImageSource
from jaxtrain.data.decode import decode_image
from jaxtrain.data.order import Order
from jaxtrain.data.residence import make_resident
from jaxtrain.data.stream import HostBatch, eval_batches, prefetch_to_device, train_batches
from jaxtrain.data.transforms import center_crop_resize, crop_generator, random_resized_crop
from jaxtrain.errors import RunError, UserError

SIZE = 24
COUNT = 45


def _jpeg(seed, height=40, width=56):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for i in range(COUNT):
        paths.append(folder / f"{i:03d}.jpg")
        paths[-1].write_bytes(_jpeg(i, height=40 + i % 3))
    return FileSource(paths, np.arange(COUNT, dtype=np.int32) % 7)


def _train(source, batch_size=40, **options):
    defaults = {"image_size": SIZE, "channels": 3, "crop": "random_resized", "seed": 3, "workers": 0}
    return train_batches(source, Order(len(source), batch_size, 3), **{**defaults, **options})


def _eval(source, **options):
    defaults = {"batch_size": 40, "image_size": SIZE, "channels": 3, "crop_pct": 0.875, "workers": 0}
    return eval_batches(source, **{**defaults, **options})


def _collect(stream):
    with stream:
        return list(stream)


def _assert_equal(batches, others):
    assert len(batches) == len(others) > 0
    for a, b in zip(batches, others, strict=True):
        for field in ("images", "labels", "weights", "indices"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def _grain_processes():
    others = ("resource_tracker", "jaxtrain.tracking.sidecar")  # which stay for as long as this process does
    children = psutil.Process().children(recursive=True)
    return [p for p in children if not any(other in " ".join(p.cmdline()) for other in others)]


def _shared_memory():
    folder = Path("/dev/shm")
    return {path.name for path in folder.glob("psm_*")} if folder.exists() else set()


def _assert_freed(before, left=0):
    deadline = time.monotonic() + 5  # Grain unlinks in a thread of its own
    while len(_shared_memory() - before) > left and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(_shared_memory() - before) <= left


def test_a_step_is_what_the_seed_and_its_number_say(source):
    batches = _collect(_train(source, stop_step=4))
    order = Order(COUNT, 40, 3)
    assert len(batches) == 4
    for step, batch in enumerate(batches):
        assert batch.images.dtype == np.uint8
        assert batch.images.shape == (40, SIZE, SIZE, 3)
        assert (batch.labels.dtype, batch.weights.dtype, batch.indices.dtype) == (
            np.int32,
            np.float32,
            np.int64,
        )
        np.testing.assert_array_equal(batch.indices, order.steps(step, step + 1)[0])
        np.testing.assert_array_equal(batch.labels, source.labels[batch.indices])
        assert (batch.weights == 1).all()
        for slot, index in enumerate(batch.indices):
            image = decode_image(source.read(int(index)), channels=3, max_pixels=10**6)
            crop = random_resized_crop(image, SIZE, crop_generator(3, step * 40 + slot))
            np.testing.assert_array_equal(batch.images[slot], crop)
    # An image meets another crop in every epoch.
    first, again = batches[0], batches[1]
    shared = set(first.indices.tolist()) & set(again.indices.tolist())
    index = next(iter(shared))
    assert (first.images[first.indices == index] != again.images[again.indices == index]).any()


@pytest.mark.parametrize("crop", ["random_resized", "center"])
def test_every_start_and_share_gives_the_same_bits(source, crop):
    whole = _collect(_train(source, crop=crop, stop_step=5))
    _assert_equal(whole[3:], _collect(_train(source, crop=crop, start_step=3, stop_step=5)))
    shares = [
        _collect(_train(source, crop=crop, start_step=1, stop_step=5, process_index=p, process_count=2)) for p in (0, 1)
    ]
    joined = [
        HostBatch(
            *(np.concatenate([getattr(h, f) for h in halves]) for f in ("images", "labels", "weights", "indices"))
        )
        for halves in zip(*shares, strict=True)
    ]
    _assert_equal(whole[1:], joined)


@pytest.mark.slow
def test_worker_processes_give_the_same_bits_and_end(source):
    expected = _collect(_train(source, start_step=1, stop_step=4))
    other = _collect(_train(source, start_step=1, stop_step=4, seed=4))
    assert (expected[0].images != other[0].images).any()
    shared = _shared_memory()
    stream = _train(source, start_step=1, workers=2, stop_step=None)
    with stream:
        got = [next(stream) for _ in range(3)]
        workers = _grain_processes()
        assert len(workers) == 2
    _assert_equal(expected, got)
    assert not psutil.wait_procs(workers, timeout=10)[1]
    _assert_freed(shared)
    assert not _grain_processes()
    with pytest.raises(StopIteration):
        next(stream)
    _assert_equal(_collect(_eval(source)), _collect(_eval(source, workers=1)))
    _assert_freed(shared)


@pytest.mark.slow
def test_signals_to_the_whole_group_do_not_reach_workers_not_even_while_they_start(source):
    def shoot():
        while not over.wait(0.002):
            for process in multiprocessing.active_children():
                for number in (signal.SIGTERM, signal.SIGINT):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, number)
                        shots.append(process.pid)

    expected = _collect(_train(source, stop_step=8))
    over, shots = threading.Event(), []
    thread = threading.Thread(target=shoot)
    thread.start()
    try:
        _assert_equal(expected, _collect(_train(source, workers=1, stop_step=8)))
    finally:
        over.set()
        thread.join()
    assert len(shots) > 20
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not _grain_processes()


@dataclass(frozen=True)
class _Faulty:
    """A source with a bug: reading image 3 raises something that is no image's fault."""

    inner: ImageSource

    @property
    def labels(self):
        return self.inner.labels

    def __len__(self):
        return len(self.inner)

    def read(self, index):
        if index == 3:
            raise KeyError("a bug")
        return self.inner.read(index)

    def describe(self, index):
        return self.inner.describe(index)

    def select(self, indices):
        return self


@dataclass(frozen=True)
class _Confessing(_Faulty):
    """A source that says, as its pixels, how the process that reads it was set up."""

    def read(self, index):
        import cv2

        facts = [os.environ.get("JAX_PLATFORMS") == "cpu", cv2.getNumThreads(), os.getpid() == self.parent]
        return np.full((SIZE, SIZE, 3), facts, np.uint8)

    parent: int = 0


@pytest.mark.slow
def test_workers_keep_off_the_accelerator_and_use_one_thread_an_image(source):
    source = _Confessing(source, parent=os.getpid())
    (batch,) = _collect(_train(source, crop="center", workers=1, stop_step=1))
    assert (batch.images == [1, 1, 0]).all()


def test_evaluation_sees_every_image_once(source):
    batches = _collect(_eval(source))
    assert len(batches) == 2
    indices = np.concatenate([b.indices for b in batches])
    weights = np.concatenate([b.weights for b in batches])
    np.testing.assert_array_equal(indices, np.r_[np.arange(COUNT), np.full(80 - COUNT, -1)])
    np.testing.assert_array_equal(weights, (indices >= 0).astype(np.float32))
    np.testing.assert_array_equal(np.concatenate([b.labels for b in batches])[:COUNT], source.labels)
    images = np.concatenate([b.images for b in batches])
    for i in range(COUNT):
        expected = center_crop_resize(decode_image(source.read(i), channels=3, max_pixels=10**6), SIZE, 0.875)
        np.testing.assert_array_equal(images[i], expected)
    assert not images[COUNT:].any()


@pytest.mark.parametrize("count", [1, 40, 41, 80])
def test_all_processes_get_the_same_number_of_evaluation_batches(source, count):
    source = source.select(np.arange(count) % COUNT)
    shares = [_collect(_eval(source, process_index=p, process_count=4)) for p in range(4)]
    assert {len(s) for s in shares} == {-(-count // 40)}
    assert sum(b.weights.sum() for s in shares for b in s) == count
    assert {b.images.shape[0] for s in shares for b in s} == {10}


def test_large_jpegs_give_the_crops_of_a_whole_decode(tmp_path):
    paths = []
    for i in range(12):
        paths.append(tmp_path / f"{i}.jpg")
        paths[-1].write_bytes(_jpeg(i, 301, 407))
    source = FileSource(paths, np.zeros(12, np.int32))
    (batch,) = _collect(_train(source, batch_size=12, stop_step=1))
    shrunk = 0
    for slot, index in enumerate(batch.indices):
        image = decode_image(source.read(int(index)), channels=3, max_pixels=10**6)
        exact = random_resized_crop(image, SIZE, crop_generator(3, slot))
        # The crop's edges lie up to half an output pixel elsewhere; another crop would not correlate at all.
        assert np.corrcoef(batch.images[slot].ravel(), exact.ravel())[0, 1] > 0.97
        shrunk += bool((batch.images[slot] != exact).any())
    assert shrunk > 8


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_stream_too(channels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (10, SIZE, SIZE, channels), dtype=np.uint8)
    source = ArraySource(images, np.arange(10, dtype=np.int32))
    (batch,) = _collect(_eval(source, batch_size=10, channels=channels, crop_pct=1.0))
    np.testing.assert_array_equal(batch.images, images)
    (batch,) = _collect(_train(source, batch_size=4, channels=channels, stop_step=1))
    assert batch.images.shape == (4, SIZE, SIZE, channels)


@pytest.fixture
def broken(source, tmp_path):
    """Images 5 (cut off) and 11 (missing) cannot be read."""
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(_jpeg(5)[:-40])
    paths = list(source.paths)
    paths[5], paths[11] = cut, tmp_path / "missing.jpg"
    return FileSource(paths, source.labels)


def test_bad_images_stop_the_run_at_once_by_default(broken):
    with (
        _eval(broken) as stream,
        pytest.raises(RunError, match=r"1 unreadable .* allows 0: .*cut.jpg: .*trunc"),
    ):
        next(stream)
    with (
        _eval(broken, bad_images=BadImages(1)) as stream,
        pytest.raises(RunError, match=r"allows 1: .*cut.*; .*missing.jpg: No such"),
    ):
        next(stream)


def test_tolerated_bad_images_weigh_nothing_and_are_named(broken, source):
    bad_images = BadImages(2)
    with _train(broken, bad_images=bad_images, stop_step=5) as stream:
        batches = list(stream)
    assert sorted(os.path.basename(name) for name in bad_images.reasons) == ["cut.jpg", "missing.jpg"]
    for batch, sound in zip(batches, _collect(_train(source, stop_step=5)), strict=True):
        bad = np.isin(batch.indices, [5, 11])
        np.testing.assert_array_equal(batch.weights, np.where(bad, 0, 1))
        np.testing.assert_array_equal(batch.indices, sound.indices)
        np.testing.assert_array_equal(batch.images[~bad], sound.images[~bad])
        assert not batch.images[bad].any()


def test_too_many_pixels_count_as_unreadable(source):
    with _eval(source, max_pixels=100) as stream, pytest.raises(RunError, match="more than 100 pixels"):
        next(stream)


def test_a_bug_in_a_source_is_not_taken_for_a_bad_image(source):
    with _eval(_Faulty(source), bad_images=BadImages(10)) as stream, pytest.raises(KeyError, match="a bug"):
        next(stream)


def test_a_batch_that_does_not_divide_gets_a_valid_one_named(source):
    with pytest.raises(UserError, match="batch_size 40 does not divide by 3 processes; try 39"):
        _train(source, process_count=3)


def test_closing_early_stops_the_threads(source):
    before = threading.active_count()
    stream = _train(source)
    next(stream)
    stream.close()
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def _numbered(count):
    for i in range(count):
        yield HostBatch(*(np.full(1, i),) * 4)


def test_prefetching_keeps_the_order_and_runs_ahead():
    put = []

    def remember(batch):
        put.append(int(batch.labels[0]))
        return put[-1]

    items = prefetch_to_device(_numbered(10), remember, depth=2)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(put) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert put == [0, 1, 2, 3]  # one taken, two waiting, one in hand
    assert list(items) == list(range(1, 10))


def test_prefetching_hands_errors_on():
    def fail(batch):
        if batch.labels[0] == 2:
            raise RunError("no space on the device")
        return batch.labels[0]

    items = prefetch_to_device(_numbered(5), fail, depth=4)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(RunError, match="no space on the device"):
        next(items)


def test_closing_the_prefetch_stops_its_thread():
    before = threading.active_count()
    items = prefetch_to_device(_numbered(10**9), lambda batch: batch.labels[0], depth=2)
    next(items)
    assert threading.active_count() == before + 1
    items.close()
    assert threading.active_count() == before


SCRIPT = """
import sys, os
from pathlib import Path
import numpy as np
from jaxtrain.data.base import FileSource
from jaxtrain.data.order import Order
from jaxtrain.data.stream import train_batches

def main(folder):
    paths = sorted(Path(folder).glob("*.jpg"))
    source = FileSource(paths, np.zeros(len(paths), np.int32))
    order = Order(len(paths), 128, 0)
    options = dict(image_size=224, channels=3, crop="random_resized", seed=0, workers=2)
    with train_batches(source, order, **options, stop_step=len(paths) // 128) as stream:
        for step, _ in enumerate(stream):
            print(step, flush=True)

if __name__ == "__main__":
    main(sys.argv[1])
"""


def _run_script(folder, script_path):
    script_path.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, str(script_path), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def _tree(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def _memory(processes):
    """Proportional set size in all: shared pages are counted once."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            full = process.memory_full_info()
            total += getattr(full, "pss", full.rss)
    return total


@pytest.mark.slow
def test_twenty_thousand_images_stream_in_under_two_gigabytes(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(40):
        (tmp_path / f"{i}.jpg").write_bytes(_jpeg(i, 224, 224))
    for i in range(20_000):
        os.link(tmp_path / f"{i % 40}.jpg", folder / f"{i:05d}.jpg")
    run = _run_script(folder, tmp_path / "script.py")
    peaks = []
    for step, _ in enumerate(run.stdout):
        if step % 4 == 0:
            peaks.append(_memory(_tree(psutil.Process(run.pid))))
    assert run.wait(60) == 0
    assert len(peaks) == 39
    assert max(peaks) < 2 * 10**9
    # It does not grow with the number of images either.
    assert max(peaks[20:]) < 1.2 * max(peaks[5:15])


@pytest.mark.slow
def test_workers_follow_a_killed_parent(source, tmp_path):
    shared = _shared_memory()
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(20_000):
        os.link(source.paths[i % COUNT], folder / f"{i:05d}.jpg")
    run = _run_script(folder, tmp_path / "script.py")
    for _ in range(3):
        run.stdout.readline()
    family = _tree(psutil.Process(run.pid))
    assert len(family) >= 3
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(family[1:], timeout=20)
    assert not alive
    # The tracker frees what it was told of: of some 30 parts all but those that a worker had made and not yet told.
    _assert_freed(shared, left=len(family) - 1)


class _Hungry(ArraySource):
    def read(self, index):
        if index == 5:
            raise MemoryError
        return super().read(index)


@pytest.mark.parametrize("loader", ["stream", "device"])
def test_where_memory_runs_out_the_image_is_named(loader):
    hungry = _Hungry(np.full((9, 8, 9, 3), 99, np.uint8), np.zeros(9, np.int32), "hungry")
    data = DataConfig(loader="device", image_size=8, channels=3, crop_pct=1.0, interpolation="bilinear")
    dataset = Dataset("x", ("a", "b"), hungry, None, lambda: None, 3, (8, 9))

    def read():
        return list(_eval(hungry)) if loader == "stream" else make_resident(dataset, Config(technique="pt", data=data))

    with pytest.raises(RunError, match="hungry image 5: memory"):
        read()
