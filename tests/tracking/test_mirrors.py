"""TensorBoard and Weights & Biases, fed from the journal: every point once, whatever is killed."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from jaxtrain import PTClassifier
from jaxtrain.config import TrackingConfig
from jaxtrain.errors import UserError
from jaxtrain.tracking import Journal, Tracker, mirroring, sync_run
from jaxtrain.tracking.event_files import EventFiles
from jaxtrain.tracking.wandb_run import WandbRun, read_rows

START = {"run_key": "k" * 32, "experiment": "PT", "run_name": "trial", "params": {"lr": "0.1"}}
Points = Counter[tuple[str, int]]


@pytest.fixture(autouse=True)
def _packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "wandb"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)


def _in_tensorboard(folder: Path) -> dict[tuple[str, int], list[float]]:
    """What TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    found: dict[tuple[str, int], list[float]] = {}
    for tag in read.Tags()["scalars"]:
        for event in read.Scalars(tag):
            found.setdefault((tag, event.step), []).append(event.value)
    return found


def _in_wandb(run_dir: Path) -> Points:
    logs = [path for path in run_dir.glob("wandb/*run-*-*/*.wandb") if not path.parent.is_symlink()]
    rows = [row for path in sorted(logs) for row in read_rows(path)]
    assert [row.number for row in rows] == list(range(len(rows)))  # or a server would drop some
    return Counter((name, row.step) for row in rows for name in row.metrics)


def _in_journal(run_dir: Path) -> dict[tuple[str, int], float]:
    records = Journal(run_dir / "metrics.jsonl").records()
    return {(name, r["step"]): r[name] for r in records for name in r if name not in ("step", "time")}


def _check_mirrors(run_dir: Path) -> None:
    """Both have each point of the journal once, TensorBoard in float32."""
    expected = _in_journal(run_dir)
    shown = _in_tensorboard(run_dir / "tensorboard")
    assert set(shown) == set(expected)
    for point, values in shown.items():
        np.testing.assert_array_equal(values, [np.float32(expected[point])])
    assert _in_wandb(run_dir) == dict.fromkeys(expected, 1)


def _start(run_dir: Path, **options: Any) -> Tracker:
    config = TrackingConfig(**{"enabled": False, "tensorboard": True, "wandb": True, **options})
    names: dict[str, Any] = {"experiment": "PT", "run_name": "trial", "params": {"lr": 0.1}, "tags": {}}
    return Tracker.start(config, run_dir=run_dir, mirrored=True, **names)


def test_event_files_go_on_behind_a_torn_record(tmp_path: Path) -> None:
    for attempt in range(3):
        events = EventFiles(tmp_path, "")
        last = events.open(START)
        assert last == ({} if attempt == 0 else {"train/loss": attempt * 10 - 1, "bad": attempt * 10 - 1})
        for step in range(attempt * 10, attempt * 10 + 10):
            events.write(step, 1e9 + step, {"train/loss": 1 / (step + 1), "bad": float("nan")})
        events.flush()
        (*_, newest) = sorted((tmp_path / "tensorboard").iterdir())
        with newest.open("rb") as file:
            tail = file.read()[-40:]
        with newest.open("ab") as file:
            file.write(tail[:30] if attempt else struct.pack("<Q", 60))  # a kill in the middle of a record
    shown = _in_tensorboard(tmp_path / "tensorboard")
    assert {point: len(values) for point, values in shown.items()} == {
        (name, step): 1 for name in ("train/loss", "bad") for step in range(30)
    }
    assert shown["train/loss", 29] == [np.float32(1 / 30)]
    assert np.isnan(shown["bad", 3][0])


def test_runs_of_one_name_keep_apart_below_a_folder(tmp_path: Path) -> None:
    for key in ("a" * 32, "b" * 32):
        events = EventFiles(tmp_path / key[0], str(tmp_path / "all"))
        assert events.open({**START, "run_key": key, "experiment": "../PT"}) == {}
        events.write(1, 1.0, {"train/loss": 1.0})
        events.close("FINISHED", {})
    folders = sorted(path.parent for path in (tmp_path / "all").rglob("events.*"))
    assert folders == [tmp_path / "all" / "PT" / f"trial-{key * 8}" for key in "ab"]


def test_a_missing_package_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # which wandb writes, and Python takes for a package
    monkeypatch.setattr(sys, "path", ["", *(path for path in sys.path if "site-packages" not in path)])
    for name in ("tensorboard", "wandb"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        model = PTClassifier(model={"name": "linear"}, tracking={name: True}, run_dir=tmp_path / "run")
        with pytest.raises(UserError, match=rf"tracking\.{name} needs .*: pip install 'jaxtrain\[{name}\]'"):
            model.fit(np.zeros((8, 4, 4), np.uint8), np.arange(8) % 2)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_tensorboard_is_refused() -> None:
    with pytest.raises(ValueError, match="tensorboard_dir needs tensorboard"):
        TrackingConfig(tensorboard_dir=Path("x"))


def _wandb_log(path: Path, rows: Iterator[tuple[int, int]]) -> None:
    """A log as wandb writes it: LevelDB's form, whole records."""
    from wandb.proto.wandb_internal_pb2 import HistoryItem, HistoryRecord, Record

    content = b":W&B\xe1\xbe\x00"
    for number, step in rows:
        values = {"_step": number, "step": step, "train/loss": 0.5}
        items = [HistoryItem(nested_key=[key], value_json=str(value)) for key, value in values.items()]
        data = Record(history=HistoryRecord(item=items)).SerializeToString()
        content += struct.pack("<IHB", 0, len(data), 1) + data
    assert len(content) < 32768
    path.parent.mkdir(parents=True)
    path.write_bytes(content)


@pytest.mark.slow
def test_online_the_server_says_which_rows_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub in the place of wandb's server: of twelve rows that were written down, it got nine."""
    key, logged, options = START["run_key"], [], {}
    _wandb_log(tmp_path / "wandb" / f"run-1-{key}" / f"run-{key}.wandb", ((i, 2 * i) for i in range(12)))
    run = SimpleNamespace(
        starting_step=9,
        log=lambda values, step: logged.append((step, values)),
        define_metric=lambda *_, **__: None,
        config=SimpleNamespace(update=lambda *_, **__: None),
        finish=lambda exit_code: logged.append(exit_code),
    )
    stub = SimpleNamespace(
        setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode="online")),
        init=lambda **given: options.update(given) or run,
        Settings=dict,
    )
    monkeypatch.setitem(sys.modules, "wandb", stub)
    mirror = WandbRun(tmp_path)
    assert mirror.open(START) == {"train/loss": 16}
    mirror.write(18, 5.0, {"train/loss": 0.25})
    mirror.close("FAILED", {"lr": "0.1", "chosen": "1"})
    assert logged == [(9, {"train/loss": 0.25, "step": 18, "_timestamp": 5.0}), 1]
    assert (options["id"], options["resume"], options["project"]) == (key, "allow", "jaxtrain")


@pytest.mark.slow
def test_a_mirror_that_fails_says_one_line_and_gets_everything_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir, canary = tmp_path / "run", "cAnArY7f3d91" * 4
    run_dir.mkdir()
    (run_dir / "tensorboard").write_text("in the way")
    (run_dir / "wandb").write_text("in the way")
    monkeypatch.setenv("WANDB_API_KEY", canary)
    with caplog.at_level(logging.WARNING, "jaxtrain.tracking"):
        tracker = _start(run_dir)
        for step in range(100):
            tracker.log(step, {"train/loss": 1 / (step + 1)})
        started = time.monotonic()
        report = tracker.finish("FINISHED", timeout=60)
        assert time.monotonic() - started < 30
    assert set(report.mirrors) == {"tensorboard", "wandb"}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all(f"jaxtrain sync {run_dir} sends them" in line and "\n" not in line for line in lines)
    for name in ("tensorboard", "wandb"):
        (run_dir / name).unlink()
    for _ in range(2):
        assert sync_run(run_dir).mirrors == {}
        _check_mirrors(run_dir)
    written = b"".join(path.read_bytes() for path in run_dir.rglob("*") if path.is_file())
    assert canary.encode() not in written + caplog.text.encode()


@pytest.mark.slow
def test_sync_writes_to_no_folder_that_only_the_run_names(tmp_path: Path) -> None:
    run_dir, target = tmp_path / "run", tmp_path / "all"
    tracker = _start(run_dir, tensorboard_dir=target, wandb=False)
    tracker.log(1, {"train/loss": 1.0})
    assert tracker.finish("FINISHED", timeout=60).mirrors == {}
    (folder,) = {path.parent for path in target.rglob("events.*")}
    assert _in_tensorboard(folder) == {("train/loss", 1): [1.0]}
    with pytest.raises(UserError, match=r"only its own files name the folder .* add --tensorboard-dir"):
        sync_run(run_dir)
    assert sync_run(run_dir, tensorboard_dir=target).mirrors == {}
    assert _in_tensorboard(folder) == {("train/loss", 1): [1.0]}


_TRAIN = """
import sys, time
from pathlib import Path
from jaxtrain.config import TrackingConfig
from jaxtrain.tracking import Journal, Tracker
run_dir, kept, end, how = Path(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4]
history = Journal(run_dir / "metrics.jsonl").records()[:kept]
names = {"experiment": "PT", "run_name": "x", "params": {}, "tags": {}, "mirrored": True}
config = TrackingConfig(enabled=False, tensorboard=True, wandb=True)
tracker = Tracker.start(config, run_dir=run_dir, history=history, **names)
for step in range(kept, end):
    tracker.log(step, {"train/loss": 1.0 / (step + 1), "train/accuracy": step / 1000})
print("logged", "wandb" in sys.modules, "tensorboard" in sys.modules, flush=True)
if how == "wait":
    time.sleep(60)
assert tracker.finish("FINISHED").mirrors == {}
"""


@pytest.mark.slow
def test_kills_of_training_and_of_what_follows_it_make_no_doubles(tmp_path: Path) -> None:
    run_dir, end = tmp_path / "run", 0
    command = [sys.executable, "-c", _TRAIN, str(run_dir)]
    for attempt in range(4):
        kept, end = max(0, end - 300), end + 500
        process = subprocess.Popen([*command, str(kept), str(end), "wait"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["logged", "False", "False"]
        followers = psutil.Process(process.pid).children(recursive=True)
        time.sleep(1.0 * attempt)
        process.kill()
        process.wait()
        if attempt % 2:
            followers += [child for one in followers for child in one.children(recursive=True)]
            for one in followers:
                if one.is_running():
                    one.send_signal(signal.SIGKILL)
    done = subprocess.run([*command, str(end - 300), str(end + 10), "finish"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(_in_journal(run_dir)) == 2 * (end + 10)
    assert min(len(list(run_dir.glob(files))) for files in ("tensorboard/events.*", "wandb/offline-run-*")) > 2
    _check_mirrors(run_dir)


@pytest.mark.slow
def test_a_run_beside_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite_uri: str) -> None:
    images, labels = np.random.default_rng(0).integers(0, 256, (48, 4, 4), np.uint8), np.arange(48) % 4
    model = PTClassifier(
        quiet=True,
        model={"name": "linear"},
        augment={"policy": "none"},
        train={"steps": 6, "batch_size": 16, "log_every": 1},
        tracking={"uri": sqlite_uri, "tensorboard": True, "wandb": True},
        run_dir=tmp_path / "run",
    )
    model.fit(images[:32], labels[:32], validation=(images[32:40], labels[32:40]), test=(images[40:], labels[40:]))
    assert {"train/loss", "val/loss", "test/loss"} <= {name for name, _ in _in_journal(tmp_path / "run")}
    _check_mirrors(tmp_path / "run")


def test_waiting_for_mirrors_that_hang_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = SimpleNamespace(alive=True)
    mirrors = mirroring.Mirrors(tmp_path, {"wandb": ""})
    mirrors.begin("session")
    started = time.monotonic()
    assert mirrors.wait(alive, 0.3)  # type: ignore[arg-type]
    assert 0.2 < time.monotonic() - started < 5
    mirrors.hear(last=True)
    assert mirrors.lacking == {"wandb": "it does not answer in time"}
    assert os.listdir(tmp_path) == []
