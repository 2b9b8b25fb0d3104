"""The disk is full: in a checkpoint, in an embedding shard, in the summary, in MLflow's database."""

import logging
import resource
import sqlite3

import pytest

from jaxtrain.errors import RunError
from jaxtrain.runs.directory import RunDirectory
from jaxtrain.tracking import sync_run
from jaxtrain.training.checkpoints import Checkpoints
from tests.faults.small_run import embed, fit, history, result


@pytest.fixture
def room():
    """`room(bytes)`: no file of this process may grow further; the system's own answer, without a disk to fill."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[1] if size is None else size, before[1]))

    yield limit
    limit(None)


WIDE = {"model": {"name": "mlp_tiny"}}


def full_after(monkeypatch, room, step, size):
    """From the first record after `step` on."""
    from jaxtrain.runs.callbacks import Recording

    log = Recording.log

    def logged(self, at, metrics):
        log(self, at, metrics)
        if at > step:
            room(size)

    monkeypatch.setattr(Recording, "log", logged)


@pytest.mark.slow
def test_in_a_checkpoint(tmp_path, monkeypatch, room):
    whole = result(fit(tmp_path / "whole", **WIDE))
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        full_after(patch, room, 20, 8192)
        with pytest.raises(RunError) as caught:
            fit(run_dir, **WIDE)
    room(None)
    assert "could not be saved: no space on the disk: " in str(caught.value)
    assert "free some, then run the same again" in str(caught.value)
    with Checkpoints(run_dir / "checkpoints", keep=2) as kept:
        assert max(kept.steps()) >= 15  # those from before are there, and sound
        restored = kept.restore()
        assert restored is not None
        assert restored.step == max(kept.steps())
        assert kept.damaged == []
    assert result(fit(run_dir, **WIDE)) == whole


@pytest.mark.slow
def test_in_an_embedding_shard(tmp_path, monkeypatch, room):
    weights = fit(tmp_path / "weights").run_dir
    whole = result(embed(tmp_path / "whole", weights))
    from jaxtrain.embeddings.files import ShardFiles

    write, written = ShardFiles.write, []

    def fuller(self, *args):
        written.append(args)
        room(100 if len(written) > 2 else None)
        try:
            return write(self, *args)
        finally:
            room(None)

    with monkeypatch.context() as patch:
        patch.setattr(ShardFiles, "write", fuller)
        with pytest.raises(RunError, match=r"embeddings could not be kept in .*: no space on the disk: .* free some"):
            embed(tmp_path / "run", weights)
    assert len(list((tmp_path / "run-store").rglob("*.npy"))) == 2
    assert result(embed(tmp_path / "run", weights)) == whole


@pytest.mark.slow
@pytest.mark.parametrize("part", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_in_the_journal(tmp_path, monkeypatch, room, part):
    """Half of the file: there is room for a part of a line; a tenth: for nothing more."""
    whole = result(fit(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        full_after(patch, room, 20, (tmp_path / "whole" / "metrics.jsonl").stat().st_size // part)
        with pytest.raises(RunError, match=r"metrics.jsonl: cannot write metrics"):
            fit(tmp_path / "run", checkpoint={"every_steps": 1000})  # a checkpoint would be the first to find no room
    room(None)
    assert result(fit(tmp_path / "run")) == whole


@pytest.mark.slow
def test_in_the_summary(tmp_path, monkeypatch, room):
    whole = result(fit(tmp_path / "whole"))
    write = RunDirectory.write_summary
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "write_summary", lambda *args: (room(100), write(*args)))
        with pytest.raises(RunError, match=r"summary.json could not be written: "):
            fit(tmp_path / "run")
    room(None)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert result(fit(tmp_path / "run")) == whole


@pytest.mark.slow
def test_in_the_database_of_mlflow(tmp_path, caplog):
    """Training goes on, says so once, and the rows follow when there is room."""
    from jaxtrain.tracking.process import sidecar

    whole = result(fit(tmp_path / "whole", train={"steps": 200}))
    database = tmp_path / "mlflow.db"
    tracking = {"enabled": True, "uri": f"sqlite:///{database}", "log_model": False, "system_metrics": False}
    fit(tmp_path / "first", train={"steps": 4}, tracking=tracking)  # makes the store
    process = sidecar()._process.pid
    before = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with caplog.at_level(logging.WARNING, "jaxtrain"):
            model = fit(tmp_path / "run", train={"steps": 200}, tracking=tracking)
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)
    assert result(model) == whole
    assert "metrics are kept in" in caplog.text
    assert "MLflow lacks" in caplog.text
    for _ in range(2):
        assert sync_run(tmp_path / "run", tracking["uri"]).unsent_rows == 0
    with sqlite3.connect(database) as store:
        query = (
            "select key, step, count(*) from metrics join runs using (run_uuid) where name = 'run' group by key, step"
        )
        counts = {(key, step): count for key, step, count in store.execute(query)}
    rows = [(key, record["step"]) for record in history(tmp_path / "run") for key in record if key != "step"]
    assert {key: counts.get(key) for key in rows} == dict.fromkeys(rows, 1)
