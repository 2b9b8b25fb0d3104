"""kill -9 while a checkpoint is written."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxtrain.training.checkpoints import Checkpoints
from tests.training.made_checkpoints import assert_is_step, names, save

_audited: list[Callable[[], None]] = []


def _audit(event: str, _: object) -> None:
    if _audited and event.startswith(("os.", "shutil.", "open")):
        watcher = _audited.pop()  # not for the watcher's own files
        try:
            watcher()
        finally:
            _audited.append(watcher)


def copy_as_it_is(source: Path, target: Path) -> None:
    """What a process killed now would leave behind; files come and go meanwhile."""
    target.mkdir(parents=True)
    for folder, _, files in os.walk(source):
        to = target / Path(folder).relative_to(source)
        to.mkdir(exist_ok=True)
        for file in files:
            try:
                shutil.copyfile(Path(folder) / file, to / file)
            except FileNotFoundError:
                continue


@pytest.mark.slow
def test_killed_before_any_operation_on_files(tmp_path: Path) -> None:
    """The folder is copied before each operation of a save; every copy must restore and go on."""
    live, copies = tmp_path / "live", tmp_path / "copies"
    found: dict[tuple[str, ...], tuple[Path, int]] = {}
    now = 0

    def snapshot() -> None:
        listing = tuple(sorted(f"{p.relative_to(live)} {p.stat().st_size}" for p in live.rglob("*")))
        if listing not in found:
            found[listing] = (copies / str(len(found)), now)
            copy_as_it_is(live, found[listing][0])

    history = [(1, None), (2, 2), (3, 3), (3, 3)]
    with Checkpoints(live, keep=1) as kept:
        sys.addaudithook(_audit)
        for number, (step, best) in enumerate(history):
            now = number
            _audited.append(snapshot)
            save(kept, step, best)
            kept.wait()
            _audited.clear()
    assert len(found) > 60

    for number, (path, at) in enumerate(found.values()):
        with Checkpoints(path, keep=1) as kept:
            assert not [name for name in names(path) if name.startswith(".")]
            restored = kept.restore()
            assert kept.damaged == []
            allowed = [*history[max(at - 1, 0) : at + 1], *([(0, None)] if at == 0 else [])]
            step, best = (0, None) if restored is None else (restored.step, dict(history)[restored.step])
            assert (step, best) in allowed
            if restored is not None:
                assert_is_step(restored, step, best)
            if number % 10 == 0:
                save(kept, 6, best=6)
                assert_is_step(kept.restore(), 6, best=6)


SAVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.training.made_checkpoints import Checkpoints, save
kept = Checkpoints(Path(sys.argv[1]), keep=2)
restored = kept.restore()
step = restored.step if restored else 0
print("ready", step, flush=True)
while True:
    step += 1
    save(kept, step, best=step // 3 * 3 or None)
    kept.wait()
    print(step, flush=True)
"""


def kill_at_random(directory: Path, seed: int) -> None:
    """Saves in a loop in another process, kills it after a random time, and looks at what it left."""
    child = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(directory), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"},
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith("ready")
    assert child.stdout.readline()  # the first save has ended
    time.sleep(random.Random(seed).uniform(0, 0.4))
    child.send_signal(signal.SIGKILL)
    child.wait()
    last = max(int(line) for line in ["0", *child.stdout.read().split()])
    with Checkpoints(directory, keep=2) as kept:
        restored = kept.restore()
        assert restored is not None
        assert restored.step >= last
        assert kept.damaged == []
        assert_is_step(restored, restored.step, best=restored.step // 3 * 3 or None)


def test_kill_9_at_a_random_moment(tmp_path: Path) -> None:
    kill_at_random(tmp_path / "checkpoints", seed=0)


@pytest.mark.slow
def test_kill_9_at_many_random_moments(tmp_path: Path) -> None:
    for seed in range(12):
        kill_at_random(tmp_path / "checkpoints", seed)
