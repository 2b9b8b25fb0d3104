"""Runs on remote images: the bits of local ones, and what happens when the store goes away."""

import itertools
import json
import socket

import pytest

from jaxtrain import Callback, PTClassifier, RunError, UserError
from jaxtrain.data import remote
from tests.data.remotes import REMOTE

QUIET = {"quiet": True, "tracking": {"enabled": False}}
SMALL = {
    "model": {"name": "linear"},
    "train": {"steps": 20, "batch_size": 8},
    "augment": {"policy": "light"},
    "checkpoint": {"every_steps": 4},
}
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSES", (0.05, 0.1))


def fit(name, run_dir, *, callbacks=(), **options):
    """With a cache that holds a few images, so that most are fetched whenever they are read."""
    data = {"name": name, "loader": "stream", "workers": 0, "cache_gb": 2e-6, **options}
    return PTClassifier(run_dir=run_dir, callbacks=list(callbacks), data=data, **QUIET, **SMALL).fit().summary


@pytest.fixture(scope="module")
def expected(root, tmp_path_factory):
    return fit(f"folder:{root}", tmp_path_factory.mktemp("local") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folders", "table", "tar"])
def test_the_bits_of_a_local_folder(form, root, expected, tmp_path):
    summary = fit(REMOTE[form](root, tmp_path, f"memory://runs{next(_numbers)}"), tmp_path / "run")
    for key in ("params_sha256", "val_accuracy", "test_loss"):
        assert summary[key] == expected[key]


class Bucket:
    """A store that speaks S3 on loopback, and can be shut and opened again; what it holds stays."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.open()

    def open(self):
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()

    def shut(self):
        self._server.stop()


@pytest.fixture
def bucket(monkeypatch):
    """Its name, and the server."""
    pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = Bucket()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "cAnArY7f3d91q",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    remote._system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    server.name = f"bucket{next(_numbers)}"
    s3fs.S3FileSystem().mkdir(server.name)
    yield server
    server.shut()
    remote._system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


class Shuts(Callback):
    """The store, after some steps."""

    def __init__(self, server, step):
        self.server, self.at = server, step

    def step(self, step, metrics, run):
        if step == self.at:
            self.server.shut()


@pytest.mark.slow
def test_wrong_places_in_a_store_get_one_line(root, bucket, tmp_path):
    REMOTE["folders"](root, tmp_path, f"s3://{bucket.name}/flowers")
    for name, message in {
        "folder:s3://no-such-bucket/set": "does not exist",
        f"folder:s3://{bucket.name}/flower": "does not exist: did you mean 'flowers'",
        f"csv:s3://{bucket.name}/table.csv": "does not exist: valid: flowers",
        f"wds:s3://{bucket.name}/{{0..3}}.tar": "matches no file",
    }.items():
        with pytest.raises(UserError, match=message):
            fit(name, tmp_path / "run")
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "workers"), [("folders", 0), ("tar", 0), pytest.param("folders", 1, marks=pytest.mark.soak)]
)
def test_a_store_that_dies_ends_the_run_which_then_goes_on(form, workers, root, expected, bucket, tmp_path):
    name = REMOTE[form](root, tmp_path, f"s3://{bucket.name}/set")
    for path in (tmp_path / "cache").rglob("*"):  # so that shards are read by ranges
        if path.is_file() and "remote" in path.parts:
            path.unlink()
    with pytest.raises(RunError, match=rf"s3://{bucket.name}/set/.* cannot be read.*goes on") as error:
        fit(name, tmp_path / "run", callbacks=[Shuts(bucket, 9)], workers=workers)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run/summary.json").exists()
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir() if path.name.isdigit()]
    with pytest.raises(RunError, match="cannot be read"):
        fit(name, tmp_path / "run")
    bucket.open()
    summary = fit(name, tmp_path / "run")
    for key in ("params_sha256", "val_accuracy", "test_loss"):
        assert summary[key] == expected[key]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert min(steps) < 9
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in written if b"cAnArY" in path.read_bytes()]
