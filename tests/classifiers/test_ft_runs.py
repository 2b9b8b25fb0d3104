"""Fine-tuning as a command and on many devices: kills, deleted weights, strategies."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jaxtrain import FTClassifier, PTClassifier
from tests.classifiers.resume import finish, history, kill, start, wait_for_step

QUIET = ("--tracking.enabled", "False")
PRETRAINING = ("--technique", "pt", "--model.name", "cnn_tiny", "--train.steps", "20", *QUIET)
# Everything that has a state of its own: a moving average, rates that change by step, decay towards the start.
TUNING = (
    "--technique", "ft", "--train.steps", "300", "--train.batch_size", "32", "--train.ema_decay", "0.99",
    "--train.log_every", "7", "--checkpoint.every_seconds", "0.2", "--checkpoint.every_steps", "20",
    "--finetune.unfreeze_steps", "60", "--finetune.layer_decay", "0.8", "--finetune.l2_sp", "0.1", *QUIET,
)  # fmt: skip
FINETUNE = {"linear_probe": True, "head_learning_rate": 1e-3}


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
        while process.poll() is None and not list((run_dir / "checkpoints").glob("0*")):
            time.sleep(0.01)  # before its first checkpoint a run needs its weights
        kill(process)
    shutil.rmtree(weights)
    again = finish(run_dir, common=("--technique", "ft", *QUIET))
    assert again["params_sha256"] == summary["params_sha256"]
    assert again["weights_sha256"] == summary["weights_sha256"]
    assert again["test_loss"] == summary["test_loss"]
    assert history(run_dir) == history(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", ["vit", pytest.param("cnn", marks=pytest.mark.soak)])
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


def steps_to(accuracy: float, run_dir: Path) -> int:
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return next(record["step"] for record in records if record.get("val/accuracy", 0.0) >= accuracy)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_half_of_the_digits_shortens_learning_the_other_half_to_a_third(seed, tmp_path):
    """97% on classes 5 to 9: from a network that knows 0 to 4, its head probed first, and from scratch."""
    digits = load_digits()
    images, labels = (digits.images * 255 / 16).round().astype(np.uint8), digits.target
    known = labels < 5
    # What `auto` chooses for the embedded digits; arrays are not known to be digits.
    augment = {"policy": "none", "rotate": 10.0, "zoom": 0.1, "mixup": 0.2}
    common = {"quiet": True, "tracking": {"enabled": False}, "seed": seed, "augment": augment}
    network = {"name": "mlp_small"}
    PTClassifier(run_dir=tmp_path / "known", model=network, train={"epochs": 100}, **common).fit(
        images[known], labels[known]
    )
    train, test, train_labels, test_labels = train_test_split(
        images[~known], labels[~known], test_size=0.3, stratify=labels[~known], random_state=seed
    )
    steps = {}
    for name, classifier, length, options in (
        ("pt", PTClassifier, 160, {"model": network}),
        ("ft", FTClassifier, 16, {"model": {"weights": str(tmp_path / "known")}, "finetune": FINETUNE}),
    ):
        lengths = {"steps": length, "batch_size": 128, "eval_every": 128 / len(train)}
        run = classifier(run_dir=tmp_path / name, train=lengths, optimizer={"learning_rate": 1e-3}, **options, **common)
        run.fit(train, train_labels, validation=(test, test_labels))
        steps[name] = steps_to(0.97, tmp_path / name)
    assert steps["ft"] <= steps["pt"] / 3
