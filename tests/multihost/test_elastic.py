"""A run goes on with another number of devices, or under another strategy, with the same images in the same steps."""

import shutil

import numpy as np
import pytest

from tests.multihost.launch import column, ended, finish, start
from tests.multihost.test_two_processes import check_batches

STEPS, STOPPED = 20, 8
OPTIONS = {"train": {"steps": STEPS, "ema_decay": 0.9}, "model": {"name": "vit_test", "patch_size": 4}}
MORE = [(2, "jit"), (8, "jit"), (1, "pmap"), (2, "pmap"), (8, "pmap"), (1, "fsdp"), (2, "fsdp")]
STRATEGIES_MORE = [pytest.param(name, marks=pytest.mark.soak) for name in ("jit", "fsdp")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finish("pt", run_dir, OPTIONS, devices=4)
    return run_dir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run on four devices that ended after step 10."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    ((code, output),) = ended(start("pt", run_dir, OPTIONS, devices=4, stop_at=STOPPED))
    assert code == 130, output
    return run_dir


def goes_on(stopped, undisturbed, run_dir, strategy, **how):
    shutil.copytree(stopped, run_dir)
    assert len(column(run_dir, "train/loss")) == STOPPED
    finish("pt", run_dir, {**OPTIONS, "parallel": {"strategy": strategy}}, **how)
    check_batches(run_dir, STEPS)
    for name in ("train/loss", "val/loss"):
        np.testing.assert_allclose(column(run_dir, name), column(undisturbed, name), rtol=1e-4)


@pytest.mark.slow
def test_on_one_device(stopped, undisturbed, tmp_path):
    goes_on(stopped, undisturbed, tmp_path / "run", "jit", devices=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "strategy"),
    [(8, "fsdp"), *(pytest.param(*case, marks=pytest.mark.soak) for case in MORE)],
)
def test_on_other_devices(devices, strategy, stopped, undisturbed, tmp_path):
    goes_on(stopped, undisturbed, tmp_path / "run", strategy, devices=devices)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pmap", *STRATEGIES_MORE])
def test_in_two_processes(strategy, stopped, undisturbed, tmp_path):
    goes_on(stopped, undisturbed, tmp_path / "run", strategy, processes=2)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pmap", *STRATEGIES_MORE])
def test_from_two_processes_in_one(strategy, undisturbed, tmp_path):
    options = {**OPTIONS, "parallel": {"strategy": strategy}}
    results = ended(start("pt", tmp_path / "run", options, processes=2, stop_at=STOPPED))
    assert [code for code, _ in results] == [130, 130], results
    goes_on(tmp_path / "run", undisturbed, tmp_path / "copy", "jit", devices=1)
