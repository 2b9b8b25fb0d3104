"""Runs the training script in processes that are killed; shared by the tests of resuming."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.clock import without_clock

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = [
    "--technique", "pt", "--model.name", "cnn_tiny", "--train.steps", "400", "--train.batch_size", "32",
    "--train.ema_decay", "0.99", "--train.log_every", "7", "--checkpoint.every_seconds", "0.2",
]  # fmt: skip


def start(run_dir: Path, *options: str, common: Sequence[str] = OPTIONS) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *common, "--run-dir", str(run_dir), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(run_dir.parent / "cache")}
    return subprocess.Popen(
        command, cwd=run_dir.parent, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(run_dir: Path, *options: str, common: Sequence[str] = OPTIONS) -> dict:
    process = start(run_dir, *options, common=common)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return json.loads((run_dir / "summary.json").read_text())


def wait_for_step(run_dir: Path, process: subprocess.Popen, step: int) -> None:
    """Until the journal has come to `step`, or the process has ended."""
    journal = run_dir / "metrics.jsonl"
    while process.poll() is None:
        lines = journal.read_text().splitlines() if journal.exists() else []
        if any(f'"step": {number}' in line for line in lines[-3:] for number in range(step, step + 50)):
            return
        time.sleep(0.01)


def stop(process: subprocess.Popen, number: int) -> tuple[int, str]:
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def history(run_dir: Path) -> list[dict]:
    """The journal without what a clock decides."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [without_clock(record) for record in records]


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()
