"""A sweep whose runs train on the nodes of a cluster comes to what it comes to on one machine."""

import csv
import os
import re
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait

import psutil
import pytest

from jaxtrain.cli.main import run
from jaxtrain.cluster import node
from jaxtrain.cluster.session import Lost, Session, connected
from jaxtrain.cluster.sweep import Driver
from jaxtrain.config import TrialsConfig, resources
from jaxtrain.errors import RunError, UserError
from jaxtrain.sweeps.config import load_sweep
from jaxtrain.sweeps.plan import make_plan
from jaxtrain.sweeps.study import Trials
from jaxtrain.training.signals import StopRequest
from tests.cluster.made import add_node, kill
from tests.sweeps.sweeping import finish, start, summaries, write


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--cluster.address", "10.0.0.1:6379"], "cluster.address: must be local, auto or ray://"),
        (["--cluster.per-trial", "gpu=1"], "per_trial needs address"),
        (["--cluster.address", "auto", "--cluster.per-trial", "gpu"], "cluster.per_trial"),
        (["--cluster.address", "auto", "--cluster.per-trial", "gpu=0"], "amounts above 0"),
        (["--cluster.address", "auto", "--cluster.per-trial", "gpu=1,gpu=2"], "each name once"),
        (["--cluster.address", "auto", "--cluster.per-trial", "gpu=1.5"], "gpu=1.5: above 1 only whole numbers"),
        (["--cluster.adress", "auto"], "did you mean '--cluster.address'"),
    ],
)
def test_wrong_options_are_one_line(options, named):
    with pytest.raises(UserError, match=re.escape(named)) as caught:
        run(["sweep", "sweeps/pt_digits", *options])
    assert "\n" not in str(caught.value)


def test_amounts_are_read_by_name():
    assert resources(TrialsConfig(address="local", per_trial="tpu=4, slice=0.25").per_trial) == {
        "tpu": 4,
        "slice": 0.25,
    }


class Nodes:
    """Ray, as far as it says what its nodes have."""

    def __init__(self, *amounts):
        self.nodes = lambda: [{"Resources": one, "Alive": one is not None} for one in amounts]


def test_there_is_room_for_as_many_as_each_node_can_have():
    session = Session(Nodes({"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 64.0}, None))
    assert session.room({"gpu": 0.5, "cpu": 2.0}) == 4 + 1
    assert session.room({"cpu": 0.1}) == 80 + 30 + 640
    with pytest.raises(UserError, match=r"--x gpu=4,cpu=1: .* gpu=2,cpu=64"):
        session.require({"gpu": 4.0, "cpu": 1.0}, "--x")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"jaxtrain\[cluster\]"), connected("local"):
        pass


@pytest.mark.parametrize("wrong", ["versions", "mark", "shared"])
def test_a_node_that_differs_says_how(wrong, tmp_path, monkeypatch):
    given = node.job(("sweep",), tmp_path, 0.0)
    value = {"versions": ("0.0.1", "0"), "mark": "other", "shared": str(tmp_path / "not-there")}[wrong]
    ended = node.carry_out(node.Job(**{**vars(given), wrong: value}))
    assert ended.code == 2
    assert {"versions": "jaxtrain", "mark": str(tmp_path), "shared": "not-there"}[wrong] in ended.words


def test_trials_on_one_gpu_share_its_memory():
    assert node.memory_of(0.5) == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450"}
    assert node.memory_of(1.0) == node.memory_of(0.0) == {}


class Threads:
    """A cluster of two nodes that are threads of this process."""

    def __init__(self, task=None):
        self.pool, self.task = ThreadPoolExecutor(2), task
        self.submitted = 0

    def room(self, need):
        return 2

    def submit(self, task, *arguments, need):
        self.submitted += 1
        return self.pool.submit(self.task or task, *arguments)

    def ended(self, tasks, timeout):
        return [*wait(tasks, timeout, "FIRST_COMPLETED").done]

    def result(self, task):
        return task.result()

    def cancel(self, tasks):
        self.pool.shutdown(cancel_futures=True)


def driver(path, session, said):
    plan = make_plan(load_sweep(path), path)
    trials = Trials(plan)
    trials.fill(again=True)
    return Driver(session, plan, trials, {"cpu": 1.0}, said.append, StopRequest(), "")


def test_workers_that_keep_failing_end_the_sweep_with_their_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxtrain.cluster.sweep._POLL_SECONDS", 0.01)
    failing = Threads(lambda job: node.Ended(2, "the disk is full", "node-7"))
    with pytest.raises(RunError, match="on node-7: the disk is full"):
        driver(write(tmp_path), failing, []).work()
    assert failing.submitted <= 6


def test_when_the_time_is_up_no_worker_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = Threads()
    one = driver(write(tmp_path, more="budget: {seconds: 0.000001}\n"), session, [])
    one.work()
    assert session.submitted == 0
    assert one.trials.claim() is None
    one.trials.fill(again=True)
    one.trials.claim().end()


@pytest.mark.parametrize("dies", ["node", "process"])
def test_workers_that_keep_dying_end_the_sweep(tmp_path, monkeypatch, dies):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxtrain.cluster.sweep._POLL_SECONDS", 0.01)

    def die(job):
        if dies == "node":
            raise Lost("its node died")
        return node.Ended(-9, "", "node-7")

    with pytest.raises(RunError, match=r"20 workers were lost in a row, .*(its node died|signal 9 on node-7)"):
        driver(write(tmp_path), Threads(die), []).work()


@pytest.mark.slow
@pytest.mark.soak
def test_what_a_killed_worker_trained_goes_on_and_every_run_is_that_of_one_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    (tmp_path / "alone").mkdir()
    paths = [write(folder, steps=400, more="test: false\n") for folder in (tmp_path, tmp_path / "alone")]
    for path in paths:
        path.write_text(path.read_text().replace("seeds: 2", "seeds: 1"))
    finish(start(paths[1]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxtrain.sweeps.study.GRACE_SECONDS", 30)
    killed, said = ThreadPoolExecutor(1).submit(kill_a_helper, paths[0]), []
    driver(paths[0], Threads(), said).work()
    assert killed.result()
    assert len({line.partition(": ")[0] for line in said}) == len(said) == 3
    assert said[-1].endswith("(3 of 3 ended)")
    digests = [
        {name: summary["params_sha256"] for name, summary in summaries(folder).items()}
        for folder in (tmp_path, tmp_path / "alone")
    ]
    assert digests[0] == digests[1]


def kill_a_helper(path):
    """Once one has saved a checkpoint."""
    deadline = time.monotonic() + 200
    while not list(path.parent.glob("runs/sweeps/tiny/*/checkpoints/0*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    found = helpers(path)
    found[0].kill()
    return found


def helpers(path):
    found = [(one, one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    return [one for one, words in found if str(path) in words and "--helper" in words]


@pytest.mark.slow
def test_a_killed_node_is_replaced_and_a_driver_that_is_stopped_goes_on(tmp_path, monkeypatch):
    cluster = pytest.importorskip("ray.cluster_utils").Cluster()
    try:
        add_node(cluster, 0)  # the first, where drivers are, trains nothing
        lost, _ = add_node(cluster, 1), add_node(cluster, 1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        path = write(tmp_path, steps=5000)
        options = ["--cluster.address", "auto", "--cluster.per-trial", "cpu=1"]
        process, folder = start(path, *options), tmp_path / "runs/sweeps/tiny"
        deadline = time.monotonic() + 400
        while len({one.parent for one in folder.glob("*/checkpoints/0*")}) < 2 and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        second = finish_with_error(start(path, *options))
        assert "another process drives this sweep" in second
        kill(cluster, lost)
        add_node(cluster, 1)
        time.sleep(5)
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        while helpers(path) and time.monotonic() - asked < 30:
            time.sleep(0.1)
        assert re.search(rf"continue with: .*sweep.* {path} --cluster.address auto", output)
        assert helpers(path) == []
        output = finish(start(path, *options))
    finally:
        cluster.shutdown()
    rows = list(csv.DictReader((folder / "results/runs.csv").open()))
    assert len(rows) == len({row["run"] for row in rows}) == 6
    found = {name: summary["params_sha256"] for name, summary in summaries(tmp_path).items()}
    shutil.rmtree(tmp_path / "runs")
    finish(start(path))
    assert {name: summary["params_sha256"] for name, summary in summaries(tmp_path).items()} == found


def finish_with_error(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    return output
