"""One command from file to results; three workers on one study, one of them killed."""

import csv
import os
import re
import shutil
import signal
import time

import psutil
import pytest
import yaml

from jaxtrain.cli.main import run
from jaxtrain.config_io import load_config
from jaxtrain.training.signals import Interrupted
from tests.sweeps.sweeping import finish, start, summaries, write


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    path = write(folder)
    return path, finish(start(path))


@pytest.mark.slow
def test_one_command_trains_every_setting_and_tests_two_of_them(swept):
    path, output = swept
    assert "3 settings x 2 seeds = 6 runs" in output
    assert "program 1: 6 runs of PT, one after another, compiled once a process (cpu)" in output
    found = summaries(path.parent)
    assert len(found) == 6
    assert all(summary["test_accuracy"] is None for summary in found.values())
    results = path.parent / "runs/sweeps/tiny/results"
    tested = list(path.parent.glob("runs/sweeps/tiny/*/benchmark/predictions.npz"))
    assert len(tested) in (2, 4)  # the chosen setting and the baseline, which may be one
    assert "test accuracy of the chosen" in output
    rows = list(csv.DictReader((results / "runs.csv").open()))
    assert {row["run"]: float(row["val/accuracy"]) for row in rows} == {
        name: summary["val_accuracy"] for name, summary in found.items()
    }
    page = (results / "report.html").read_text()
    assert page.count("<img") >= 3
    assert "http" not in page.split("</style>")[1].replace("http://www.w3.org", "")


@pytest.mark.slow
def test_the_best_config_trains_as_it_is(swept):
    results = swept[0].parent / "runs/sweeps/tiny/results"
    best = load_config(results / "best.yaml")
    rows = list(csv.DictReader((results / "settings.csv").open()))
    assert best.optimizer.learning_rate == float(rows[0]["optimizer.learning_rate"])
    assert (best.quiet, best.run_dir) == (False, None)


@pytest.mark.slow
def test_again_it_repeats_nothing_and_a_wider_file_adds_to_it(swept):
    path, _ = swept
    before = {name: summary["wall_seconds"] for name, summary in summaries(path.parent).items()}
    assert "6 of them done" in finish(start(path))
    tree = yaml.safe_load(path.read_text())
    tree["seeds"] = 3
    path.write_text(yaml.safe_dump(tree))
    output = finish(start(path))
    assert output.count("val/accuracy 0") + output.count("val/accuracy 1") == 3  # one line for each new run
    after = {name: summary["wall_seconds"] for name, summary in summaries(path.parent).items()}
    assert len(after) == 9
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_run_directories_decide_what_is_done(tmp_path):
    path, folder = write(tmp_path), tmp_path / "runs/sweeps/tiny"
    finish(start(path))
    before = {name: summary["wall_seconds"] for name, summary in summaries(tmp_path).items()}
    lost = min(before)
    shutil.rmtree(folder / lost)
    assert finish(start(path)).count("val/accuracy 0.") == 1
    (folder / "study.db").unlink()
    finish(start(path))
    after = {name: summary["wall_seconds"] for name, summary in summaries(tmp_path).items()}
    assert {name for name in before if before[name] != after[name]} == {lost}


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
def test_three_workers_share_a_study_and_one_is_killed(tmp_path, request, storage):
    more = "" if storage == "sqlite" else f"storage: {request.getfixturevalue('postgres')}\n"
    path = write(tmp_path, steps=400, more=more)
    workers = [start(path) for _ in range(3)]
    deadline = time.monotonic() + 120
    folder = tmp_path / "runs/sweeps/tiny"
    while len(list(folder.glob("*/checkpoints/0*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    workers[0].send_signal(signal.SIGKILL)
    workers[0].communicate()
    outputs = [finish(worker) for worker in workers[1:]]
    found = summaries(tmp_path)
    assert len(found) == 6
    assert sum("report    " in output for output in outputs) == 1
    assert (folder / "results/report.html").is_file()
    trained = [line for output in outputs for line in output.splitlines() if ", seed " in line]
    assert len(trained) == len({line.partition(": ")[0] for line in trained})  # none was trained twice
    (tmp_path / "alone").mkdir()
    finish(start(write(tmp_path / "alone", steps=400)))
    digests = {name: summary["params_sha256"] for name, summary in summaries(tmp_path / "alone").items()}
    assert {name: summary["params_sha256"] for name, summary in found.items()} == digests


@pytest.mark.slow
def test_processes_of_one_command_share_the_runs(tmp_path):
    path = write(tmp_path, steps=400)
    path.write_text(path.read_text().replace("workers: 1", "workers: 2"))
    output = finish(start(path))
    assert "processes: 2" in output
    trained = [line.partition(": ")[0] for line in output.splitlines() if ", seed " in line]
    assert len(trained) == len(set(trained)) == len(summaries(tmp_path)) == 6


@pytest.mark.slow
def test_a_signal_stops_it_and_the_same_command_goes_on(tmp_path):
    path = write(tmp_path, steps=2000)
    process = start(path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/sweeps/tiny/*/checkpoints/0*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert re.search(rf"continue with: .*sweep.* {path}\n", output)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_results_are_written_names_the_command(swept, monkeypatch, number):
    path, _ = swept
    monkeypatch.chdir(path.parent)

    def rendered(*_):
        os.kill(os.getpid(), number)
        return "a page"

    with monkeypatch.context() as patch:
        patch.setattr("jaxtrain.sweeps.page.render", rendered)
        with pytest.raises(Interrupted, match=rf"continue with: .*sweep.*{path}") as caught:
            run(["sweep", str(path), "--quiet"])
    assert caught.value.exit_code == 128 + number
    run(["sweep", str(path), "--quiet"])


@pytest.mark.slow
def test_helpers_save_and_end_when_their_parent_is_killed(tmp_path):
    path = write(tmp_path, steps=20_000)
    path.write_text(path.read_text().replace("workers: 1", "workers: 2"))
    process = start(path)
    deadline = time.monotonic() + 120
    folder = tmp_path / "runs/sweeps/tiny"
    while len({found.parent for found in folder.glob("*/checkpoints/0*")}) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while (there := [one for one in psutil.process_iter(["cmdline"]) if str(path) in (one.info["cmdline"] or [])]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert there == []
    steps = [max(int(one.name) for one in run.glob("checkpoints/0*")) for run in folder.glob("*-*") if run.is_dir()]
    assert any(step % 20 for step in steps)  # one was saved where it stood
