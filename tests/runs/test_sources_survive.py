"""Runs on every kind of file that holds images: killed and resumed, and in two processes, they are the folder's run."""

import json
import subprocess

import pytest

from tests.classifiers.resume import finish, history, kill, start, wait_for_step
from tests.data.forms import FORMS
from tests.multihost.launch import free_port

OPTIONS = [
    "--technique", "pt", "--model.name", "mlp_tiny", "--train.steps", "300", "--train.batch_size", "16",
    "--train.log_every", "5", "--checkpoint.every_steps", "7", "--checkpoint.every_seconds", "1000",
    "--data.loader", "stream", "--augment.policy", "light", "--tracking.enabled", "False", "--quiet",
]  # fmt: skip
KINDS = ["csv", "parquet with images", "tar", "hf saved"]


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory):
    """Summary and history of the folder's run."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return finish(run_dir, "--data.name", f"folder:{root}", common=OPTIONS), history(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed(kind, root, undisturbed, tmp_path):
    name = FORMS[kind](root, tmp_path)
    process = start(tmp_path / "run", "--data.name", name, common=OPTIONS)
    wait_for_step(tmp_path / "run", process, 20)
    assert process.poll() is None, process.communicate()
    kill(process)
    summary, records = undisturbed
    resumed = finish(tmp_path / "run", "--data.name", name, common=OPTIONS)
    assert resumed["params_sha256"] == summary["params_sha256"]
    assert history(tmp_path / "run") == records


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "tar"])
def test_two_processes_share_the_images(kind, root, undisturbed, tmp_path):
    name = FORMS[kind](root, tmp_path)
    shared = ("--parallel.coordinator", f"localhost:{free_port()}", "--parallel.num-processes", "2")
    both: list[subprocess.Popen[str]] = []
    for number in range(2):
        own = ("--data.name", name, "--parallel.process-id", str(number))
        both.append(start(tmp_path / "run", *own, *shared, common=OPTIONS))
    for process in both:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["test_loss"] == pytest.approx(undisturbed[0]["test_loss"], rel=1e-3)
    mine, theirs = (
        [record["train/loss"] for record in records if "train/loss" in record][:10]
        for records in (history(tmp_path / "run"), undisturbed[1])
    )
    assert mine == pytest.approx(theirs, rel=1e-3)
