"""A run of two processes is the run of one: the same batches, losses and predictions."""

import re
import signal
import sqlite3
import time

import numpy as np
import pytest

from jaxtrain.data.order import Order
from tests.multihost.launch import column, ended, finish, own_predictions, predictions, start
from tests.multihost.worker import TRAIN

STREAM = {"data": {"loader": "stream", "workers": 0}}
AUGMENTED = {
    "model": {"drop_rate": 0.2},
    "augment": {"policy": "light", "mixup": 0.2},
    "train": {"ema_decay": 0.9, "accumulate": 2},
}
# What has ReLU and maximum pooling leaves its own path after some hundred steps, in fine-tuning after ten, by 1e-3 and
# more in one step, when its images change by 1e-7: a kink is passed. This network has none.
VIT = {"model": {"name": "vit_test", "patch_size": 4}}
MORE = [({}, "jit"), (STREAM, "jit"), (STREAM, "pmap"), (AUGMENTED, "jit"), (VIT, "fsdp")]


def expected_batches(steps, seed=0, batch_size=64):
    """Means of the images' numbers, and of a hash of them, in each step."""
    numbers = Order(TRAIN.stop, batch_size, seed).steps(0, steps)
    return numbers.mean(axis=1), (numbers * 31 % 1009).mean(axis=1)


def check_batches(run_dir, steps):
    for found, expected in zip(
        (column(run_dir, "train/number"), column(run_dir, "train/hash")), expected_batches(steps), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def check_same(two, one, summaries):
    """Losses within 1e-4, and the same predictions of the test images, none left out."""
    for name in ("train/loss", "val/loss"):
        np.testing.assert_allclose(column(two, name), column(one, name), rtol=1e-4)
    np.testing.assert_allclose(predictions(two), predictions(one), rtol=1e-2, atol=1e-3)
    np.testing.assert_array_equal(predictions(two).argmax(1), predictions(one).argmax(1))
    for key in ("val_accuracy", "test_accuracy", "best_step", "steps"):
        assert summaries[0][key] == summaries[1][key]
    assert len(own_predictions(two)) == 2
    for logits in own_predictions(two):
        np.testing.assert_allclose(logits, predictions(two), rtol=1e-3, atol=1e-4)


def compare(technique, options, folder, way="jit"):
    two, one = folder / "two", folder / "one"
    summaries = [
        finish(technique, two, {**options, "parallel": {"strategy": way}}, processes=2),
        finish(technique, one, options, devices=1),
    ]
    check_same(two, one, summaries)
    return two, summaries[0]


@pytest.mark.slow
def test_pretraining_in_two_processes_is_that_of_one(tmp_path):
    two, summary = compare("pt", {"model": {"name": "mlp_tiny"}}, tmp_path)
    check_batches(two, 20)
    assert len(summary["devices"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "way"),
    [
        (AUGMENTED, "pmap"),
        (VIT | STREAM, "fsdp"),
        *(pytest.param(*case, marks=pytest.mark.soak) for case in MORE),
    ],
)
def test_every_way_to_feed_and_run_agrees(options, way, tmp_path):
    compare("pt", options, tmp_path, way)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    def weights(options):
        run_dir = tmp_path_factory.mktemp("weights") / "pt"
        finish("pt", run_dir, {**options, "train": {"steps": 60}}, devices=1)
        return str(run_dir)

    return weights


@pytest.mark.slow
def test_fine_tuning(weights, tmp_path):
    options = {**VIT, "finetune": {"linear_probe": True}, "optimizer": {"learning_rate": 0.002}}
    options["model"] = {**VIT["model"], "weights": weights(VIT)}
    two, _ = compare("ft", options, tmp_path)
    check_batches(two, 20)


@pytest.mark.slow
def test_feature_extraction_shares_the_images(weights, tmp_path):
    options = {"model": {"weights": weights({})}, "train": {}, "features": {"store": str(tmp_path / "store")}}
    two = finish("fe", tmp_path / "two", options, processes=2)
    one = finish("fe", tmp_path / "one", options | {"features": {"store": str(tmp_path / "other")}}, devices=1)
    np.testing.assert_allclose(predictions(tmp_path / "two"), predictions(tmp_path / "one"), rtol=1e-3, atol=1e-4)
    assert two["test_accuracy"] == one["test_accuracy"]
    assert (two["cache_hit"], one["cache_hit"]) == (False, False)
    again = finish("fe", tmp_path / "again", options, devices=1)
    assert again["cache_hit"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("signalled", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_a_signal_to_one_stops_all_at_one_step_and_one_process_goes_on(signalled, tmp_path):
    short = {**VIT, "train": {"steps": 1000}}
    options = {**short, "tracking": {"enabled": True, "uri": f"sqlite:///{tmp_path}/mlflow.db"}}
    run_dir = tmp_path / "run"
    processes = start("pt", run_dir, options, processes=2)
    wait_for_records(run_dir, processes)
    processes[signalled].send_signal(signal.SIGTERM)
    results = ended(processes)
    assert [code for code, _ in results] == [143, 143], results
    steps = {int(re.search(r"stopped at step (\d+)", output)[1]) for _, output in results}
    (stopped,) = steps
    assert [int(path.name) for path in (run_dir / "checkpoints").glob("0*")] == [stopped]
    assert statuses(tmp_path) == ["KILLED"]
    finish("pt", run_dir, options, devices=1)
    finish("pt", tmp_path / "one", short, devices=1)
    assert statuses(tmp_path) == ["FINISHED"]
    check_batches(run_dir, 1000)
    np.testing.assert_allclose(column(run_dir, "train/loss"), column(tmp_path / "one", "train/loss"), 1e-3, 1e-4)


def wait_for_records(run_dir, processes):
    while not (run_dir / "metrics.jsonl").exists() or len(column(run_dir, "train/loss")) < 20:
        assert [process.poll() for process in processes] == [None, None], ended(processes)
        time.sleep(0.1)


def statuses(folder):
    with sqlite3.connect(folder / "mlflow.db") as store:
        query = "select status from runs join experiments using (experiment_id) where experiments.name = 'PT'"
        return [status for (status,) in store.execute(query)]


@pytest.mark.slow
def test_a_wrong_option_ends_all_with_its_line(tmp_path):
    results = ended(start("pt", tmp_path / "run", {"train": {"batch_size": 31}}, processes=2))
    assert [code for code, _ in results] == [2, 2], results
    for _, output in results:
        assert "train.batch_size: 31 does not divide by 4 (4 devices)" in output
        assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_ends_the_other_with_its_reason(failing, tmp_path):
    """The other one waits for it in a collective operation meanwhile."""
    results = ended(start("pt", tmp_path / "run", {}, processes=2, fails=(failing, 10)))
    assert [code for code, _ in results] == [1, 1], results
    assert "no space left in step 10" in results[failing][1]
    assert f"error: process {failing}: " in results[1 - failing][1]
    assert "no space left in step 10" in results[1 - failing][1]
    assert not any("Check failure stack trace" in output for _, output in results)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_other(tmp_path):
    """Once its heartbeat has been away for so long."""
    processes = start("pt", tmp_path / "run", {"train": {"steps": 100_000}}, processes=2, heartbeat=10)
    wait_for_records(tmp_path / "run", processes)
    processes[1].kill()
    (code, output), _ = ended(processes, timeout=200)
    assert code not in (0, None), output
