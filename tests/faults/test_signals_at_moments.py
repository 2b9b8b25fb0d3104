"""A signal at any moment of any command: the right exit code, one line, nothing left behind, the same result after."""

import os
import pty
import random
import select
import signal
import sys
import time

import pytest

from jaxtrain.training.signals import SIGNALS
from tests.classifiers.resume import OPTIONS as TRAINING
from tests.classifiers.resume import ROOT
from tests.faults.moments import disturb, jobs, resumed

NAMES = ("pt", "fe", "ft", "sweep", "benchmark", "embed", "predict")


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moments")
    found = jobs(folder)
    assert tuple(found) == NAMES
    return folder, found


@pytest.fixture(scope="module")
def undisturbed(commands):
    folder, found = commands
    for name, job in found.items():
        (folder / f"whole-{name}").mkdir()
        job.undisturbed(folder / f"whole-{name}")
    return commands


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("seconds", [0.0, 0.5, 2.0])
def test_a_signal_while_a_program_starts(commands, tmp_path, number, seconds):
    job = commands[1]["pt"]
    active, wrong = disturb(job, job.prepared(tmp_path / "run"), seconds, number)
    assert active
    assert wrong == []


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("name", NAMES)
def test_a_signal_at_any_moment(undisturbed, tmp_path, name):
    job, generator, wrong = undisturbed[1][name], random.Random(name), {}
    for trial in range(43):  # 300 in all
        number, seconds = generator.choice(SIGNALS), generator.uniform(0.0, job.seconds)
        again = generator.choice([None, None, None, 0.05, 0.5])
        folder = job.prepared(tmp_path / str(trial))
        _, found = disturb(job, folder, seconds, number, again)
        found += resumed(job, folder)
        if found:
            wrong[trial, signal.Signals(number).name, seconds, again] = found
    assert wrong == {}


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_saves(tmp_path):
    run_dir = tmp_path / "run"
    words = [*TRAINING, "--train.steps", "20000", "--checkpoint.every_seconds", "1000"]
    words += ["--run-dir", str(run_dir), "--tracking.enabled", "False"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, str(ROOT / "scripts/train.py"), *words], environment)
    journal, deadline = run_dir / "metrics.jsonl", time.monotonic() + 120
    while not (journal.exists() and journal.read_text()) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP
    assert len([path for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit()]) == 1
