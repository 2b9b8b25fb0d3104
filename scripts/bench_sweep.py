"""What a sweep costs against one run: `python scripts/bench_sweep.py [--seeds 16] [--epochs 20]`.

Bars: 16 seeds of the small CNN on digits take at most 3 times one run on a GPU and at most 10 times one cold run on two
CPU cores. Both are whole commands in fresh processes with fresh compilation caches, tracking included, and no test.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
SWEEP = """
base: {{technique: pt, model: {{name: cnn_small}}, train: {{epochs: {epochs}}}}}
axes: {{optimizer.learning_rate: [0.001]}}
seeds: {seeds}
test: false
"""


def seconds(command: list[str]) -> float:
    """Wall time of a command in an empty folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"XDG_CACHE_HOME": folder, "PYTHONPATH": str(SCRIPTS.parent)}
        started = time.monotonic()
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - started


def main() -> None:
    """Interleaved rounds; the ratio of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="seeds") as file:
        file.write(SWEEP.format(epochs=given.epochs, seeds=given.seeds))
        file.flush()
        one = [sys.executable, str(SCRIPTS / "train.py"), "--technique", "pt", "--model.name", "cnn_small"]
        one += ["--train.epochs", str(given.epochs), "--quiet", "True"]
        for number in range(given.rounds):
            alone = seconds(one)
            sweep = seconds([sys.executable, str(SCRIPTS / "sweep.py"), file.name])
            ratio = f"{sweep / alone:.2f} times"
            print(f"round {number + 1}: one seed {alone:.1f} s, {given.seeds} seeds {sweep:.1f} s: {ratio}")


if __name__ == "__main__":
    main()
