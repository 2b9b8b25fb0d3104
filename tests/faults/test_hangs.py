"""A run, or a worker of it, stands still."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from jaxtrain.data import worker_watch
from jaxtrain.data.base import ArraySource
from jaxtrain.data.order import Order
from jaxtrain.data.stream import train_batches
from jaxtrain.data.worker_watch import WorkerWatch
from jaxtrain.errors import RunError
from jaxtrain.training.checkpoints import Checkpoints
from jaxtrain.training.feed import ResidentFeed
from jaxtrain.training.hang import GENEROUS, HangWatch
from tests.faults.poison import STEPS, data, train


def wait_until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_stacks_are_written_and_the_state_is_saved_while_data_is_awaited(tmp_path, monkeypatch, caplog):
    run_dir, hang_at, kept = tmp_path / "run", 17, {}
    real = ResidentFeed.args

    def data_that_does_not_come(feed, step):
        if step == hang_at and not kept:
            wait_until(lambda: "the state is saved" in caplog.text)
            kept["stacks"] = (run_dir / "stacks.txt").read_text()
        return real(feed, step)

    monkeypatch.setattr(ResidentFeed, "args", data_that_does_not_come)
    options = {"images": data(()), "checkpoint": {"every_seconds": 1e6}}
    with caplog.at_level(logging.ERROR):
        model = train(run_dir, hang_minutes=0.3 / 60, **options)
    assert "no step for" in kept["stacks"]
    assert "in data_that_does_not_come" in kept["stacks"]
    assert kept["stacks"].lower().count("thread 0x") >= 2
    assert str(run_dir / "stacks.txt") in caplog.text
    # The save was complete, and neither it nor the wait has changed anything.
    whole = train(tmp_path / "whole", **options)
    assert model.summary["params_sha256"] == whole.summary["params_sha256"]


@pytest.mark.slow
def test_the_state_saved_in_a_hang_is_that_of_its_step(tmp_path, monkeypatch, caplog):
    """The process is lost in the hang; the same command goes on from it and ends in the same bits."""
    run_dir, hang_at = tmp_path / "run", 17
    real = ResidentFeed.args

    class LostError(Exception):
        pass

    def lost(feed, step):
        if step == hang_at:
            wait_until(lambda: "the state is saved" in caplog.text)
            raise LostError
        return real(feed, step)

    options = {"images": data(()), "checkpoint": {"every_seconds": 1e6}}
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(ResidentFeed, "args", lost)
        with pytest.raises(RunError, match="LostError"):
            train(run_dir, hang_minutes=0.3 / 60, **options)
    with Checkpoints(run_dir / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.steps() == [hang_at]
    again, whole = train(run_dir, **options), train(tmp_path / "whole", **options)
    assert again.summary["steps"] == STEPS
    assert again.summary["params_sha256"] == whole.summary["params_sha256"]


ENDLESS = """
import os, signal, sys, time
from pathlib import Path
from jaxtrain.training import hang
from jaxtrain.training.feed import ResidentFeed
from tests.faults.poison import data, train

def data_that_does_not_come(feed, step):
    if step == 17:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)
    return real(feed, step)

hang.STOP_SECONDS, real = 1.0, ResidentFeed.args
ResidentFeed.args = data_that_does_not_come
train(Path(sys.argv[1]), images=data(()), checkpoint={"every_seconds": 1e6})
"""


@pytest.mark.slow
def test_a_signal_while_data_does_not_come_saves_and_ends_the_process(tmp_path):
    run_dir, options = tmp_path / "run", {"images": data(()), "checkpoint": {"every_seconds": 1e6}}
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", ENDLESS, run_dir], env={**os.environ, "PYTHONPATH": path}, timeout=120
    )
    assert ended.returncode == 143
    with Checkpoints(run_dir / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.steps() == [17]
    again, whole = train(run_dir, **options), train(tmp_path / "whole", **options)
    assert again.summary["params_sha256"] == whole.summary["params_sha256"]


def test_in_the_middle_of_a_step_nothing_is_saved(tmp_path, caplog):
    with caplog.at_level(logging.ERROR), HangWatch(0.2 / 60, tmp_path / "stacks.txt") as watch:
        watch.beat()
        wait_until(lambda: "cannot be saved now" in caplog.text)
    assert "Thread 0x" in (tmp_path / "stacks.txt").read_text()


@pytest.mark.slow
def test_one_hang_is_told_once_and_the_next_one_again(tmp_path, caplog):
    with caplog.at_level(logging.ERROR), HangWatch(0.2 / 60, tmp_path / "stacks.txt") as watch:
        for told in (1, 2):
            watch.beat()
            wait_until(lambda told=told: caplog.text.count("no step for") == told)
            time.sleep(0.5)
            assert caplog.text.count("no step for") == told


@pytest.mark.slow
def test_compiling_and_evaluating_may_take_longer(tmp_path, caplog):
    seconds = 0.5
    with caplog.at_level(logging.ERROR), HangWatch(seconds / 60, tmp_path / "stacks.txt") as watch:
        time.sleep(2 * seconds)
        assert "no step" not in caplog.text
        watch.beat()
        watch.evaluating()
        time.sleep(2 * seconds)
        assert "no step" not in caplog.text
        wait_until(lambda: "no step" in caplog.text, seconds * GENEROUS * 20)


def test_a_save_has_ended_before_the_state_moves_on(tmp_path):
    order = []

    def slow_save():
        started.set()
        time.sleep(0.5)
        order.append("saved")

    started = threading.Event()
    with HangWatch(0.2 / 60, tmp_path / "stacks.txt") as watch:
        watch.beat()
        watch.waiting(slow_save)
        assert started.wait(120)
        watch.arrived()
        order.append("went on")
    assert order == ["saved", "went on"]


@dataclass(frozen=True)
class Stuck(ArraySource):
    """Worker processes stand at image 40 for longer than is waited for them."""

    parent: int = 0

    def read(self, index):
        if index == 40 and os.getpid() != self.parent:
            time.sleep(90)
        return super().read(index)


@pytest.mark.slow
def test_a_hung_worker_is_an_error_that_names_it_and_is_gone(monkeypatch):
    monkeypatch.setattr(worker_watch, "SECONDS", 5.0)
    source = Stuck(np.zeros((64, 8, 8, 3), np.uint8), np.zeros(64, np.int32), parent=os.getpid())
    stream = train_batches(
        source, Order(64, 64, 3), image_size=8, channels=3, crop="center", seed=3, workers=2, stop_step=4
    )
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with (
        stream,
        pytest.raises(RunError, match=r"an input worker hangs: process \d+ .* gave nothing for 5 seconds") as e,
    ):
        list(stream)
    named = int(str(e.value).split("process ")[1].split()[0])
    assert named not in before
    assert not psutil.pid_exists(named) or psutil.Process(named).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_killed_worker_is_an_error_that_names_it():
    source = ArraySource(np.zeros((64, 8, 8, 3), np.uint8), np.zeros(64, np.int32))
    order = Order(64, 32, 3)
    with train_batches(source, order, image_size=8, channels=3, crop="center", seed=3, workers=2) as stream:
        next(stream)
        victim = next(p for p in multiprocessing.active_children() if p.name.startswith("grain-process-prefetch"))
        os.kill(victim.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(RunError, match=rf"an input worker died: process {victim.pid} .*exit code -9") as caught:
            list(stream)
    assert time.monotonic() - start < 60
    assert "\n" not in str(caught.value)
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("grain-process-prefetch")]


def test_workers_that_find_no_room_in_shared_memory_say_so():
    watch = WorkerWatch()
    watch._workers = [SimpleNamespace(pid=1, name="w", exitcode=-signal.SIGBUS)]
    assert "/dev/shm, which is full" in watch.notice()
    with watch.closing():
        pass
