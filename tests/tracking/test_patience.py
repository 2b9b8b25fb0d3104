from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jaxtrain.config import TrackingConfig
from jaxtrain.tracking import Tracker, patience


def _never() -> bool:
    return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes by sleeping alone."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    return now


def test_all_waits_together_take_the_time_of_one(clock: list[float]) -> None:
    store = patience.Patience("http://host")
    for _ in range(20):
        store.wait(_never, 600.0)
    assert 130.0 <= clock[0] < 136.0
    store.restore()
    store.wait(_never, 7.0)
    assert 22.5 < store.left() < 24.0
    clock[0] += 3600.0
    assert store.left() == 30.0


def test_ctrl_c_leaves_a_wait_and_nothing_else(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "SILENT_SECONDS", 0.2)
    store, before = patience.Patience("http://host"), signal.getsignal(signal.SIGINT)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, "jaxtrain.tracking"):
        store.wait(_never, 30.0)
        store.wait(_never, 30.0)
    assert 0.4 < time.monotonic() - start < 5
    assert signal.getsignal(signal.SIGINT) is before
    assert [r.getMessage() for r in caplog.records] == [
        "waiting up to 30 s for MLflow at http://host; Ctrl-C goes on without it"
    ]


@pytest.mark.slow
def test_two_runs_of_a_server_that_never_answers_wait_once(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a run and its evaluation do; the sidecar's own requests are longer than all patience."""
    server.fault = "hang"
    waits = patience.patience(server.uri)
    monkeypatch.setattr(waits, "_most", 4.0)
    monkeypatch.setattr(patience, "SILENT_SECONDS", 0.5)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, "jaxtrain.tracking"):
        for number in range(4):
            names = {"experiment": "PT", "run_name": "x", "params": {}, "tags": {}}
            tracker = Tracker.start(TrackingConfig(uri=server.uri), run_dir=tmp_path / str(number), **names)
            tracker.log(1, {"a": 1.0})
            assert tracker.wait_run_id(30.0) is None
            assert tracker.finish("FINISHED").problem is not None
    assert time.monotonic() - start < 8
    assert f"for MLflow at {server.uri}; Ctrl-C goes on without it" in caplog.text
