"""Fine-tuning that is killed and started again ends in the same bits, and needs the weights' source only once."""

import shutil

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
