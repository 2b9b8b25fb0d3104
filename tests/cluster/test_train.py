"""One training over several workers, started together and again after a loss: to the bits of one undisturbed."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future

import psutil
import pytest

from jaxtrain.cli.main import run
from jaxtrain.cluster import node
from jaxtrain.cluster.node import Ended
from jaxtrain.cluster.session import Lost
from jaxtrain.cluster.train import Group
from jaxtrain.config import Config
from jaxtrain.errors import RunError, UserError
from jaxtrain.training.signals import StopRequest
from tests.cluster.made import add_node, kill

OPTIONS = {
    "technique": "pt", "data.name": "digits", "model.name": "mlp_tiny", "train.steps": "1500", "train.batch_size": "64",
    "checkpoint.every_steps": "50", "tracking.enabled": "False",
}  # fmt: skip


def words(run_dir, *more):
    return [*(word for name in OPTIONS for word in (f"--{name}", OPTIONS[name])), "--run-dir", str(run_dir), *more]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--run-dir", "r", "--cluster.workers", "2"], "workers needs address"),
        (["--cluster.address", "local"], "--cluster.address: give --run-dir"),
        (
            ["--run-dir", "r", "--cluster.address", "local", "--smoke"],
            "--smoke and --cluster.address",
        ),
        (["--run-dir", "r", "--cluster.address", "local", "--cluster.workers", "0"], "cluster.workers"),
        (
            ["--run-dir", "r", "--cluster.address", "local", "--parallel.num_processes", "1"],
            "--parallel.num_processes: on a cluster the processes are those of --cluster.workers",
        ),
        (
            ["--run-dir", "r", "--cluster.address", "local", "--tracking.uri", "https://me:secret@host"],
            "--tracking.uri holds a password, which nodes are not sent",
        ),
    ],
)
def test_wrong_options_are_one_line(options, named):
    with pytest.raises(UserError, match=re.escape(named)) as caught:
        run(["train", "--technique", "pt", *options])
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


class Script:
    """A cluster on which each attempt ends as it is told: how each worker ends, after what happens to the room."""

    def __init__(self, room, *attempts):
        self.space, self.attempts, self.jobs, self.pending = room, list(attempts), [], []

    def room(self, need):
        return self.space

    @contextlib.contextmanager
    def group(self, need, count):
        self.jobs.append([])
        yield count

    def has_room(self, group, timeout):
        return group <= self.space

    def submit(self, task, *arguments, need, place):
        done = Future()
        if task is node.address:
            done.set_result("10.0.0.1:1234")
            return done
        self.jobs[-1].append(arguments[0])
        end = self.attempts[0][place[1]]
        if len(self.jobs[-1]) == place[0]:
            self.attempts.pop(0)
        if isinstance(end, Lost):
            self.space -= 1
            done.set_exception(end)
        elif end is not None:
            done.set_result(Ended(end, "the disk is full", "node-7"))
        return done

    def ended(self, tasks, timeout):
        return [task for task in tasks if task.done()]

    def result(self, task):
        return task.result()

    def cancel(self, tasks):
        pass


def train(session, tmp_path, workers=2):
    config = Config.model_validate({"technique": "pt", "run_dir": tmp_path / "run"})
    Group(session, config, {"cpu": 1.0}, workers, lambda text: None, StopRequest(), "").train()


def option(job, name):
    return job.words[job.words.index(name) + 1] if name in job.words else None


def test_all_start_again_where_one_was_lost_and_fewer_where_its_place_has_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxtrain.cluster.train._GRACE_SECONDS", 0.1)
    session = Script(3, [0, -9, None], [None, 143, 0], [None, Lost("its node died"), None], [0, 0])
    train(session, tmp_path, workers=None)
    assert [len(jobs) for jobs in session.jobs if jobs] == [3, 3, 3, 2]
    for jobs in session.jobs:
        assert [option(job, "--parallel.process_id") for job in jobs] == [str(i) for i in range(len(jobs))]
        assert {option(job, "--parallel.num_processes") for job in jobs} <= {str(len(jobs))}
        assert {option(job, "--parallel.coordinator") for job in jobs} <= {"10.0.0.1:1234"}
        assert {option(job, "--parallel.cpu_devices") for job in jobs} == {"1"}


def test_one_worker_has_the_devices_of_two(tmp_path):
    session = Script(2, [Lost("its node died"), None], [0])
    train(session, tmp_path)
    (job,) = session.jobs[-1]
    assert option(job, "--parallel.coordinator") is None
    assert (option(job, "--parallel.num_processes"), option(job, "--parallel.cpu_devices")) == ("1", "2")


def test_workers_that_keep_being_lost_end_it(tmp_path):
    with pytest.raises(RunError, match=r"lost 5 times .*: ended by signal 9 on node-7"):
        train(Script(2, *[[-9, None]] * 9), tmp_path)


@pytest.mark.parametrize(("code", "error"), [(1, RunError), (2, UserError)])
def test_what_the_run_itself_refuses_ends_it_with_its_words(code, error, tmp_path):
    session = Script(2, [code, code])
    with pytest.raises(error, match="node-7: the disk is full"):
        train(session, tmp_path)
    assert len(session.jobs) == 1


def test_more_workers_than_there_is_room_for_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--cluster\.workers 3: the cluster has room for 2 with cpu=1 for each"):
        train(Script(2), tmp_path, workers=3)


def test_one_driver_at_a_time_trains_a_run(tmp_path):
    config = Config.model_validate({"technique": "pt", "run_dir": tmp_path / "run"})
    first = Group(Script(2, [0, 0]), config, {"cpu": 1.0}, 2, lambda text: None, StopRequest(), "")
    first.say = lambda text: train(Script(2), tmp_path)
    with pytest.raises(UserError, match=r"another process drives the training in .*/run"):
        first.train()


def start(run_dir, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxtrain", "train", *words(run_dir, *more)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process, code=0):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == code, output
    return output


def saved(run_dir):
    return max((int(path.name) for path in (run_dir / "checkpoints").glob("0*") if path.name.isdigit()), default=0)


def until_saved(run_dir, process, after=0):
    deadline = time.monotonic() + 300
    while saved(run_dir) <= after and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    assert process.poll() is None, "it ended before anything was killed"
    return saved(run_dir)


def workers(run_dir):
    found = [(one, one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    return [one for one, line in found if str(run_dir) in line and "--helper" in line]


def digest(run_dir):
    return json.loads((run_dir / "summary.json").read_text())["params_sha256"]


@pytest.mark.slow
def test_a_training_that_loses_a_worker_a_node_and_its_driver_ends_with_the_bits_of_one_undisturbed(
    tmp_path, monkeypatch
):
    cluster = pytest.importorskip("ray.cluster_utils").Cluster()
    finish(start(tmp_path / "alone", "--parallel.cpu_devices", "2"))
    run_dir, on_cluster = tmp_path / "run", ["--cluster.address", "auto", "--cluster.workers", "2"]
    try:
        add_node(cluster, 0)
        nodes = [add_node(cluster, 1) for _ in range(2)]
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        process = start(run_dir, *on_cluster)
        step = until_saved(run_dir, process)
        workers(run_dir)[1].kill()
        step = until_saved(run_dir, process, after=step)
        process.send_signal(signal.SIGINT)
        output = finish(process, 130)
        assert "continue with:" in output
        assert output.count("a worker was lost") == 1
        assert workers(run_dir) == []
        process = start(run_dir, *on_cluster)
        until_saved(run_dir, process, after=step)
        kill(cluster, nodes.pop(0))
        output = finish(process)
        assert "1 of 2 workers train" in output
        assert workers(run_dir) == []
    finally:
        cluster.shutdown()
    assert digest(run_dir) == digest(tmp_path / "alone")
