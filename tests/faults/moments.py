"""Commands that get a signal at some moment: how they end, what they leave behind, and what becomes of them then."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
GONE_SECONDS = 10.0
_PROGRAM = """
import os
from jaxtrain.cli.main import main
from jaxtrain.training import signals
listen = signals.listen
signals.listen = lambda: (listen(), os.write(1, b"begun\\n"))  # before that Python alone answers
main()
"""
_MARK = "JAXTRAIN_TEST_MARK"
SMALL = [
    *("--model.name", "mlp_tiny", "--train.steps", "150", "--train.batch_size", "32", "--train.log_every", "20"),
    *("--checkpoint.every_steps", "40", "--data.max_train_images", "480"),
]
SWEEP = {
    "base": {
        "technique": "pt",
        "model": {"name": "mlp_tiny"},
        "train": {"steps": 200, "batch_size": 32},
        "tracking": {"enabled": False},
    },
    "axes": {"optimizer.learning_rate": [0.001, 0.003]},
    "seeds": 2,
    "workers": 2,
}


@dataclass
class Job:
    """A command in a folder of its own, which is made from `template`."""

    words: list[str]
    template: Path
    finished: list[str] = field(default_factory=list)
    """Patterns of the files whose digests count."""
    seconds: float = 0.0
    """From its first line to its end, undisturbed."""
    outcome: dict = field(default_factory=dict)

    def start(self, folder: Path, mark: str = "") -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder.parent / "cache")}
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *self.words], cwd=folder, env={**environment, _MARK: mark}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # under nohup it would not be heard
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        return process

    def prepared(self, folder: Path) -> Path:
        shutil.copytree(self.template, folder)
        return folder

    def undisturbed(self, folder: Path) -> None:
        for name in ("first", "second"):  # the first compiles
            where = self.prepared(folder / name)
            began = time.monotonic()
            finish(self.start(where))
            self.seconds, self.outcome = time.monotonic() - began, self.result(where)

    def result(self, folder: Path) -> dict:
        """What an interruption must not change."""
        files = sorted(path for pattern in self.finished for path in folder.glob(pattern))
        keys = ("params_sha256", "val_accuracy", "test_accuracy", "models")
        trees = {str(path.relative_to(folder)): json.loads(path.read_text()) for path in files}
        return {name: [_part(tree.get(key)) for key in keys] for name, tree in trees.items()}


def _part(value):
    return [one["accuracy"] for one in value] if isinstance(value, list) else value


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def jobs(folder: Path) -> dict[str, Job]:
    """Every command on a trained model of seconds."""
    empty, trained = folder / "empty", folder / "trained"
    empty.mkdir()
    trained.mkdir()
    (empty / "small.yaml").write_text(yaml.safe_dump(SWEEP))
    Train = ["train", "--technique"]  # noqa: N806
    for seed in ("0", "1"):
        words = [*Train, "pt", "--run-dir", f"runs/pt/{seed}", "--seed", seed, *SMALL, "--tracking.enabled", "False"]
        finish(Job(words, trained).start(trained))
    weights = ["--model.weights", "runs/pt/0"]
    fe = [*Train, "fe", "--run-dir", "runs/fe/0", *weights]
    finish(Job([*fe, "--tracking.enabled", "False"], trained).start(trained))
    shutil.copytree(trained, folder / "plain")
    shutil.rmtree(folder / "plain" / "runs" / "fe")
    shutil.rmtree(folder / "plain" / "runs" / "embeddings")
    _images(trained / "images")
    finish(Job([*Train, "pt", "--run-dir", "runs/pt/other", *SMALL], empty).start(empty))  # which makes a database
    ft = [word for word in SMALL if word not in ("--model.name", "mlp_tiny")]
    return {
        "pt": Job([*Train, "pt", "--run-dir", "runs/pt/x", *SMALL], empty, ["runs/pt/x/summary.json"]),
        "fe": Job(fe, folder / "plain", ["runs/fe/0/summary.json"]),
        "ft": Job(
            [*Train, "ft", "--run-dir", "runs/ft/x", *weights, *ft], folder / "plain", ["runs/ft/x/summary.json"]
        ),
        "sweep": Job(["sweep", "small.yaml"], empty, ["runs/sweeps/small/*/summary.json"]),
        "benchmark": Job(["benchmark", "--out", "report"], trained, ["report/results.json"]),
        "embed": Job(["embed", "verify"], trained, ["runs/*/*/summary.json"]),
        "predict": Job(["predict", "runs/pt/0", "images"], trained, ["runs/*/*/summary.json"]),
    }


def _images(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for number in range(200):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def left(mark: str) -> list[str]:
    """Command lines of the processes that carry the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"{_MARK}={mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found.append((path / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def disturb(job: Job, folder: Path, seconds: float, number: int, again: float | None = None) -> tuple[bool, list[str]]:
    """The command gets the signal so many seconds after its first line, and `again` seconds later another SIGINT.

    Whether it was still at work, and what is wrong with how it ended.
    """
    mark = uuid.uuid4().hex
    process = job.start(folder, mark)
    try:
        process.wait(seconds)
        finish(process)
        return False, []
    except subprocess.TimeoutExpired:
        pass
    sent = time.monotonic()
    (os.kill if number == signal.SIGTERM else os.killpg)(process.pid, number)
    if again is not None:
        time.sleep(again)
        process.send_signal(signal.SIGINT)
    wrong = []
    try:
        output, _ = process.communicate(timeout=GONE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        wrong.append(f"not gone after {GONE_SECONDS} s")
    while (there := left(mark)) and time.monotonic() - sent < GONE_SECONDS:
        time.sleep(0.1)
    wrong += [f"left behind: {line}" for line in there]
    codes = {128 + number} | ({130} if again is not None else set())
    complete = process.returncode == 0 and "interrupted" not in output  # it was taking itself down already
    if process.returncode not in codes and not complete:
        wrong.append(f"exit code {process.returncode}")
    if not complete and len(re.findall("^interrupted: ", output, re.MULTILINE)) != 1:
        wrong.append("not one line that says why")
    wrong += [word for word in ("Traceback", "Exception ignored", "Error") if word in output]
    return True, [*wrong, output] if wrong else []


def resumed(job: Job, folder: Path) -> list[str]:
    """The same command again: what is wrong with what comes of it."""
    process = job.start(folder)
    output, _ = process.communicate(timeout=300)
    if process.returncode != 0:
        return [f"again: exit code {process.returncode}", output]
    found = job.result(folder)
    return [] if found == job.outcome else [f"another outcome: {found} is not {job.outcome}"]
