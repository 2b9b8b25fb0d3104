"""Fine-tuning as a command and on many devices: kills, deleted weights, strategies."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from resume import finish, history, kill, start, wait_for_step

QUIET = ("--tracking.enabled", "False")
PRETRAINING = ("--technique", "pt", "--model.name", "cnn_tiny", "--train.steps", "20", *QUIET)
# Everything that has a state of its own: a moving average, rates that change by step, decay towards the start.
TUNING = (
    "--technique", "ft", "--train.steps", "300", "--train.batch_size", "32", "--train.ema_decay", "0.99",
    "--train.log_every", "7", "--checkpoint.every_seconds", "0.2", "--finetune.unfreeze_steps", "60",
    "--finetune.layer_decay", "0.8", "--finetune.l2_sp", "0.1", *QUIET,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_twice_and_its_weights_deleted_the_run_ends_in_the_same_bits(tmp_path):
    weights = tmp_path / "pt"
    finish(weights, common=PRETRAINING)
    tuning = (*TUNING, "--model.weights", str(weights))
    summary = finish(tmp_path / "whole", common=tuning)
    assert summary["weights"] == str(weights)
    run_dir = tmp_path / "run"
    for step in (40, 150):
        process = start(run_dir, common=tuning)
        wait_for_step(run_dir, process, step)
        kill(process)
    shutil.rmtree(weights)
    again = finish(run_dir, common=("--technique", "ft", *QUIET))
    assert again["params_sha256"] == summary["params_sha256"]
    assert again["weights_sha256"] == summary["weights_sha256"]
    assert again["test_loss"] == summary["test_loss"]
    assert history(run_dir) == history(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", ["vit", "cnn"])
def test_strategies_on_eight_devices_agree_with_one(case):
    command = [sys.executable, str(Path(__file__).with_name("ft_devices.py")), case]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    one = results.pop("one")
    assert len(one["losses"]) == 12
    assert np.ptp(one["losses"]) > 0.01
    for name, other in results.items():
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(other["logits"], one["logits"], rtol=1e-2, atol=1e-3, err_msg=name)
        assert other["trained"] == one["trained"]
