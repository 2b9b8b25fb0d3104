import importlib.util
import json
import os
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


@pytest.mark.slow
def test_the_models_benchmark_measures_ours_without_a_peer(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "bench_models.py"), "--models", "resnet_tiny", "--sizes", "16"]
    command += ["--batch", "4", "--rounds", "2", "--seconds", "0.01", "--json", str(tmp_path / "bench.json")]
    subprocess.run(command, check=True, timeout=250, cwd=tmp_path)
    rows = json.loads((tmp_path / "bench.json").read_text())
    assert [row["work"] for row in rows] == ["train", "embed"]
    assert all(len(row["ms"]["jaxtrain"]) == 2 and min(row["ms"]["jaxtrain"]) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed: .[tpu]")
def test_the_step_for_tpus_is_what_it_should_be(tmp_path):
    """A ViT of one block on four chips: its state is donated, gradients are summed together, the host is left alone."""
    command = [sys.executable, str(ROOT / "scripts" / "bench_compile.py"), "--models", "vit_small_patch16_224"]
    command += ["--depth", "1", "--batch", "16", "--json", str(tmp_path / "rows.json")]
    subprocess.run(command, check=True, timeout=550, cwd=tmp_path, env=os.environ | {"TPU_SKIP_MDS_QUERY": "1"})
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["host_transfers"] == 0
    assert 0 < row["collectives"] <= 4
    batch = 16 * (224 * 224 * 3 + 4)
    assert row["alias_bytes"] > 0.98 * (row["argument_bytes"] - 2 * batch)
    assert row["cycles"] < row["bare"]["cycles"]
