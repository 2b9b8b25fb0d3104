from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.errors import RunError
from jaxtrain.tracking.journal import Journal


def test_a_record_is_one_line_of_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append(3, {"train/loss": 0.1, "epoch": np.float32(0.5)})
    (line,) = journal.path.read_text().splitlines()
    record = json.loads(line)
    assert list(record) == ["step", "time", "train/loss", "epoch"]
    assert (record["step"], record["train/loss"], record["epoch"]) == (3, 0.1, 0.5)


def test_every_float_comes_back_as_it_was(tmp_path: Path) -> None:
    values = [
        0.1,
        -0.0,
        5e-324,
        1.7976931348623157e308,
        float(np.float32(0.1)),
        math.inf,
        -math.inf,
        math.nan,
    ]
    journal = Journal(tmp_path / "metrics.jsonl")
    for step, value in enumerate(values):
        journal.append(step, {"x": value})
    back = [record["x"] for record in journal.records()]
    assert np.array(back).tobytes() == np.array(values).tobytes()
    for line in journal.path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_rewriting_the_records_changes_no_byte(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    for step in range(20):
        journal.append(step, {"a": step / 7, "b": math.nan if step == 5 else math.inf})
    before = journal.path.read_bytes()
    journal.truncate(journal.records())
    assert journal.path.read_bytes() == before


def test_truncate_then_append_goes_on_behind_the_kept_records(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    for step in range(5):
        journal.append(step, {"a": step})
    journal.truncate(journal.records()[:2])
    journal.append(2, {"a": 20.0})
    assert [(r["step"], r["a"]) for r in journal.records()] == [(0, 0.0), (1, 1.0), (2, 20.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_torn_last_line_is_left_out_and_cut_off_by_the_next_append(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path)
    journal.append(1, {"loss": 1.0})
    journal.append(2, {"loss": 2.0})
    journal.close()
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path)
    assert [r["step"] for r in journal.records()] == [1]
    journal.append(3, {"loss": 3.0})
    assert [r["step"] for r in journal.records()] == [1, 3]


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time": 0.0}\nrubbish\n{"step": 2, "time": 0.0}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl, line 2"):
        Journal(path).records()


def test_no_file_is_no_records(tmp_path: Path) -> None:
    assert Journal(tmp_path / "missing.jsonl").records() == []


def test_reserved_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'time'"):
        Journal(tmp_path / "metrics.jsonl").append(1, {"time": 1.0})


def test_a_full_disk_is_a_clear_error() -> None:
    with pytest.raises(RunError, match=r"/dev/full: cannot write metrics: No space left"):
        Journal(Path("/dev/full")).append(1, {"loss": 1.0})


def test_every_record_before_a_kill_is_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = """
import itertools, sys
from pathlib import Path
from jaxtrain.tracking.journal import Journal
journal = Journal(Path(sys.argv[1]))
for step in itertools.count():
    journal.append(step, {"loss": 1.0 / (step + 1)})
    sys.stdout.write(f"{step}\\n")
    sys.stdout.flush()
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [int(process.stdout.readline()) for _ in range(500)]
    os.kill(process.pid, signal.SIGKILL)
    seen += [int(line) for line in process.stdout.read().splitlines()]
    process.wait()
    steps = [record["step"] for record in Journal(path).records()]
    assert steps == list(range(len(steps)))
    assert len(steps) >= len(seen)
