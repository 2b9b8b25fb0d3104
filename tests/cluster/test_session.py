"""What goes wrong between this machine and a cluster is one line that says what to do."""

import re
import sys
import types

import numpy as np
import pytest
from PIL import Image

from jaxtrain.cli.main import run
from jaxtrain.cluster.pool import Pool, Workers, check_seen
from jaxtrain.cluster.session import Lost, Session, connected
from jaxtrain.config import DataConfig
from jaxtrain.data.base import FileSource
from jaxtrain.errors import RunError, UserError
from tests.cluster.made import Here
from tests.multihost.launch import free_port


@pytest.mark.parametrize(
    "command", ["audit --data.name digits", "benchmark", "validate --weights x --data.name digits"]
)
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--cluster.workers 2", "workers needs address"),
        ("--cluster.resources gpu=1", "resources needs address"),
        ("--cluster.address auto --cluster.workers 0", "cluster.workers"),
        ("--cluster.address auto --cluster.resources cpu", "cluster.resources: must be names with amounts"),
        ("--cluster.address 10.0.0.1:6379", "cluster.address: must be local, auto or ray://"),
        ("--cluster.address auto --cluster.per-trial cpu=1", "--cluster.per-trial"),
    ],
)
def test_wrong_options_are_one_line(command, options, named):
    with pytest.raises(UserError, match=re.escape(named)) as caught:
        run([*command.split(), *options.split()])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "variable", "said"),
    [
        ("ray://127.0.0.1:PORT", None, r"at ray://127\.0\.0\.1:[0-9]+: Connection refused"),
        ("ray://[::1]:99999", None, r"there is no port 99999"),
        ("auto", "127.0.0.1:PORT", r"at 127\.0\.0\.1:[0-9]+: Connection refused"),
        ("auto", "nonsense", r"at nonsense: Invalid address format: nonsense"),
        ("auto", "http://127.0.0.1:1", r"Invalid Ray address: 'http://127\.0\.0\.1:1'$"),
    ],
)
def test_an_address_without_a_cluster_is_found_out_at_once(address, variable, said, monkeypatch):
    pytest.importorskip("ray")
    port = str(free_port())
    monkeypatch.setenv("RAY_ADDRESS", (variable or "").replace("PORT", port))
    with pytest.raises(UserError, match=said) as caught, connected(address.replace("PORT", port)):
        pass
    assert "\n" not in str(caught.value)


class Ray(types.ModuleType):
    """What jaxtrain asks Ray for, which answers with errors."""

    class exceptions:  # noqa: N801
        RayError = type("RayError", (Exception,), {})
        RayTaskError = type("RayTaskError", (RayError,), {"cause": ValueError("the disk is full")})

    def __init__(self, at_start=None, at_task=""):
        super().__init__("ray")
        self.at_start, self.at_task, self.was_shut = at_start, at_task, False

    def init(self, **options):
        if self.at_start:
            raise self.at_start

    def shutdown(self):
        self.was_shut = True

    def get(self, task):
        raise self.exceptions.RayError(self.at_task)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"),
            r": Version mismatch: The cluster was started with: Ray: 2\.60\.0 Python: 3\.11\.7$",
        ),
        (ConnectionError("Failed to connect to Ray cluster at X"), "if it asks for a token, set RAY_AUTH_MODE"),
        (ConnectionError("Could not find any running Ray instance. Please"), r"not set: Could not .* instance$"),
    ],
)
def test_a_cluster_that_refuses_says_why(error, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", Ray(error))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=said) as caught, connected("auto"):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "<RPC\n details = \"No module named 'jaxtrain'\"\n>",
            r"No module named 'jaxtrain'\): its head needs the same",
        ),
        ("Ray Client is not connected", r"Ray Client is not connected\): the same command goes on"),
    ],
)
def test_a_connection_that_breaks_is_one_line(error, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ray := Ray())
    with pytest.raises(RunError, match=said), connected("auto"):
        raise ConnectionError(error)
    assert ray.was_shut
    with pytest.raises(ConnectionRefusedError), connected("auto"):
        raise ConnectionRefusedError


@pytest.mark.parametrize(
    ("said_by_ray", "kind", "said"),
    [
        (
            "The actor died because of an error raised in its creation task, X()\nTraceback:\nTypeError: 3 arguments",
            RunError,
            "a worker cannot start on the cluster: TypeError: 3 arguments: all nodes need the same jaxtrain",
        ),
        (
            "in its creation task\nAttributeError: Can't get attribute 'Place'",
            RunError,
            "cannot import what it is to run",
        ),
        ("The actor died unexpectedly. Its process", Lost, "The actor died unexpectedly$"),
    ],
)
def test_only_what_another_worker_could_do_is_done_again(said_by_ray, kind, said):
    with pytest.raises(kind, match=said):
        Session(Ray(at_task=said_by_ray)).result("task")


def test_images_that_a_node_does_not_see_are_not_taken_for_damaged_ones(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "sound.png")
    (tmp_path / "damaged.png").write_text("no picture")
    paths = [str(tmp_path / name) for name in ("sound.png", "damaged.png")]
    files, data = FileSource(paths, np.zeros(2, np.int32)), DataConfig(channels=3)
    check_seen(files, {}, data)
    check_seen(files, {paths[1]: "not an image"}, data)
    with pytest.raises(RunError, match=r"sound\.png: a node .* cannot read it \(No such file\), and the driver can"):
        check_seen(files, {paths[0]: "No such file"}, data)


def test_a_cluster_without_room_is_waited_for_and_said_once(monkeypatch, caplog):
    monkeypatch.setattr("jaxtrain.cluster.pool._POLL_SECONDS", 0.001)
    monkeypatch.setattr("jaxtrain.cluster.pool._PATIENCE_SECONDS", 0.01)

    class Number:
        def ready(self):
            pass

        def block(self, number):
            return number

    session, asked = Here(), []
    session.room = lambda need: asked.append(need) or (3 if len(asked) > 50 else 0)
    assert list(Pool(Workers(session, {"gpu": 1.0}), Number, ()).in_order(range(3))) == [0, 1, 2]
    assert caplog.text.count("waiting for a node that has room for a worker with gpu=1") == 1
