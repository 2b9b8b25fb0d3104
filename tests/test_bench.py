import json
import subprocess
import sys
from pathlib import Path

import pytest

VARIANTS = ("bare", "jaxtrain", "jaxtrain - validation")
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_loop_benchmark_measures_every_variant(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "--rounds", "2", "--cnn-steps", "2"]
    command += ["--linear-steps", "20", "--json", str(tmp_path / "bench.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    times = json.loads((tmp_path / "bench.json").read_text())["milliseconds_a_step"]
    variants = {f"{model} {variant}" for model in ("cnn_small", "linear") for variant in VARIANTS}
    assert variants <= set(times)
    assert all(len(values) == 2 and min(values) > 0 for values in times.values())
    assert all(name in done.stdout for name in variants)
