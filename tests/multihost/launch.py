"""Starts the processes of a run; shared by the tests of several processes and of changing devices."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from jaxtrain.config import acting

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
COMMON = {
    "quiet": True,
    "tracking": {"enabled": False},
    "parallel": {"connect_seconds": 300},
    "model": {"name": "cnn_tiny"},
    "augment": {"policy": "none"},
    "train": {"steps": 20, "batch_size": 64, "log_every": 1},
    "optimizer": {"name": "sgd", "learning_rate": 0.05},  # Adam's first steps follow the sign of noise
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def merged(below: dict, above: dict) -> dict:
    both = {key: merged(value, above[key]) for key, value in below.items() if isinstance(above.get(key), dict)}
    return {**below, **above, **both}


def start(technique, run_dir, options, *, processes=1, devices=2, **test) -> list[subprocess.Popen]:
    """Each process with its own CPU devices; `options` over COMMON, one dict for all; `test`: see `worker.run`.

    Compiled as users do: at XLA's level 0, which the fast tests use, results differ by the size of a device's part.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(run_dir.parent / "cache")}
    environment.pop("XLA_FLAGS", None)
    coordinator = f"localhost:{free_port()}"
    started = []
    for number in range(processes):
        parallel = {"cpu_devices": devices}
        if processes > 1:
            parallel |= {"coordinator": coordinator, "num_processes": processes, "process_id": number}
        given = merged(acting(technique, merged(COMMON, options)), {"parallel": parallel})
        arguments = [technique, str(run_dir), json.dumps(given), json.dumps(test)]
        started.append(
            subprocess.Popen(
                [sys.executable, str(WORKER), *arguments],
                cwd=run_dir.parent,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    return started


def ended(processes: list[subprocess.Popen], timeout: float = 1500.0) -> list[tuple[int, str]]:
    """(exit code, output) of each."""
    results = []
    for process in processes:
        output, _ = process.communicate(timeout=timeout)
        results.append((process.returncode, output))
    return results


def finish(technique, run_dir, options, **how) -> dict:
    """Runs to the end; the summary."""
    for code, output in ended(start(technique, run_dir, options, **how)):
        assert code == 0, output
    return json.loads((run_dir / "summary.json").read_text())


def column(run_dir: Path, name: str) -> np.ndarray:
    """One metric of the journal, in the order of steps."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return np.array([record[name] for record in records if name in record])


def predictions(run_dir: Path) -> np.ndarray:
    """`float32[test images, classes]` as the run's test evaluation kept them."""
    with np.load(run_dir / "benchmark" / "predictions.npz", allow_pickle=False) as file:
        return file["logits"]


def own_predictions(run_dir: Path) -> list[np.ndarray]:
    """The same as each process computed them by itself afterwards."""
    return [np.load(path) for path in sorted(run_dir.parent.glob(f"{run_dir.name}-*.npy"))]
