"""An audit whose embeddings workers compute finds what it finds on one machine."""

import pytest

from jaxtrain.cli.main import run
from jaxtrain.cluster import embed
from jaxtrain.errors import RunError, UserError
from tests.cluster.made import Here, connect
from tests.cluster.test_embed import BATCH, train, write_images

ON_CLUSTER = ("--cluster.address", "local", "--cluster.workers", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained network, and 200 pictures of which one is none, and one there twice."""
    folder = tmp_path_factory.mktemp("audit")
    train(folder)
    write_images(folder / "pictures", 200)
    (folder / "pictures" / "1" / "00031.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    (folder / "pictures" / "1" / "00033.png").write_bytes((folder / "pictures" / "0" / "00036.png").read_bytes())
    return folder


def audited(folder, store, *more):
    options = {
        "data.name": f"folder:{folder / 'pictures'}", "data.max_bad_images": "1", "data.folds": "3",
        "model.weights": str(folder / "run"), "features.batch_size": str(BATCH), "features.store": str(store),
        "out": str(store.with_suffix(".out")),
    }  # fmt: skip
    run(["audit", "--quiet", *(word for name in options for word in (f"--{name}", options[name])), *more])
    return (store.with_suffix(".out") / "suggestions.csv").read_bytes()


@pytest.mark.slow
def test_the_table_is_that_of_one_machine_also_in_two_starts(folder, tmp_path, monkeypatch):
    session = connect(Here(room=3, lost=(2,)), monkeypatch, 2 * BATCH)
    expected = audited(folder, tmp_path / "one")
    assert session.calls == 0
    assert b"unreadable" in expected
    assert audited(folder, tmp_path / "many", *ON_CLUSTER) == expected
    assert session.workers == 3
    calls, session.lost = session.calls, range(session.calls + 2, 1000)
    with embed.alone(tmp_path / "many"), pytest.raises(UserError, match="another process fills the embedding store"):
        audited(folder, tmp_path / "many", *ON_CLUSTER)
    assert audited(folder, tmp_path / "many", *ON_CLUSTER) == expected
    assert session.calls == calls  # all is there
    with pytest.raises(RunError, match="lost in a row"):
        audited(folder, tmp_path / "cut", *ON_CLUSTER)
    session.lost = ()
    assert audited(folder, tmp_path / "cut", *ON_CLUSTER) == expected


@pytest.mark.slow
def test_ray_computes_the_embeddings_of_an_audit(folder, tmp_path):
    pytest.importorskip("ray")
    expected = audited(folder, tmp_path / "one")
    assert audited(folder, tmp_path / "many", "--cluster.address", "local") == expected
