"""Predictions that workers compute are those of one machine, and kept as its own are."""

import shutil

import jax
import numpy as np
import pytest

import jaxtrain
from jaxtrain.cli.main import run
from jaxtrain.cluster import benchmark
from jaxtrain.cluster.node import Place
from jaxtrain.data.base import ArraySource
from jaxtrain.errors import JaxtrainError, RunError, UserError
from tests.cluster.made import Here, connect

RUNS = ("runs/pt/mlp", "runs/fe/features")
BATCH = 16
OPTIONS = ["--skip-costs", "--quiet", "--tracking.enabled", "False", "--resamples", "100", "--out", "report"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Finished runs of two techniques on 8x8 pictures, without predictions."""
    folder, rng = tmp_path_factory.mktemp("benchmark"), np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (400, 8, 8, 3), np.uint8), np.arange(400) % 3
    data = folder / "data.npz"
    np.savez(data, x_train=images[:200], y_train=labels[:200], x_test=images[200:], y_test=labels[200:])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = {"data": {"name": f"npz:{data}"}, "tracking": {"enabled": False}, "quiet": True}
        learned = {"model": {"name": "mlp_tiny"}, "train": {"steps": 2, "batch_size": BATCH}}
        jaxtrain.PTClassifier(run_dir=RUNS[0], **learned, **options).fit()
        features = {"model": {"weights": RUNS[0]}, "features": {"batch_size": BATCH}, "head": {"weight_decay": (0.1,)}}
        jaxtrain.FEClassifier(run_dir=RUNS[1], **features, **options).fit()
    for path in RUNS:
        shutil.rmtree(folder / path / "benchmark")
    return folder


@pytest.fixture
def compared(trained, tmp_path, monkeypatch):
    """Compares copies of the runs, in a folder of that name: its predictions, and the table of results."""

    def compare(name, *more):
        if not (tmp_path / name).exists():
            shutil.copytree(trained, tmp_path / name)
        monkeypatch.chdir(tmp_path / name)
        run(["benchmark", *RUNS, "--skip-duplicates", *OPTIONS, *more])
        files = [*(f"{path}/benchmark/predictions.npz" for path in RUNS), "report/leaderboard.csv"]
        return [(tmp_path / name / file).read_bytes() for file in files]

    return compare


@pytest.mark.slow
def test_predictions_are_those_of_one_machine_also_in_two_starts(compared, tmp_path, monkeypatch):
    session = connect(Here(room=3, lost=(2,)), monkeypatch, 2 * BATCH)
    expected = compared("one")
    assert session.calls == 0
    on_cluster = ("--cluster.address", "local", "--cluster.workers", "2")
    assert compared("many", *on_cluster) == expected
    calls, workers = session.calls, session.workers
    assert calls > 2 * 6
    assert workers == 3  # two, and one for the lost one: they serve all runs
    assert compared("many", *on_cluster) == expected
    assert session.calls == calls  # predictions are kept
    session.lost = range(calls + 5, 1000)
    with pytest.raises(JaxtrainError, match=r"predictions of runs/pt/mlp: 10 workers were lost in a row"):
        compared("cut", *on_cluster)
    kept = sorted((tmp_path / "cut").rglob("blocks/*/*"))
    assert [path.name for path in kept] == [f"{number:05}.npz" for number in range(4)]
    kept[2].write_bytes(b"PK")  # it and those after it are computed again
    before, session.lost = session.calls, ()
    assert compared("cut", *on_cluster) == expected
    assert session.calls - before == calls - 1 - 2
    assert not [*(tmp_path / "cut").rglob("blocks")]


@pytest.mark.slow
def test_a_damaged_run_is_left_out_and_the_other_is_predicted(compared, trained, tmp_path, monkeypatch):
    session = connect(Here(room=1), monkeypatch, 2 * BATCH)
    shutil.copytree(trained, tmp_path / "damaged")
    (tmp_path / "damaged" / RUNS[0] / "model" / "meta.json").write_text("{}")
    with pytest.raises(RunError, match=f"left out, see the warnings: {RUNS[0]}"):
        compared("damaged", "--cluster.address", "local")
    assert (tmp_path / "damaged" / RUNS[1] / "benchmark" / "predictions.npz").is_file()
    assert session.calls == 6 + 1  # of test and validation images


def test_weights_are_validated_by_workers_too(trained, tmp_path, monkeypatch):
    session = connect(Here(room=2), monkeypatch, 2 * BATCH)
    monkeypatch.chdir(tmp_path)
    words = ["validate", "--weights", str(trained / RUNS[0]), "--data.name", f"npz:{trained / 'data.npz'}", *OPTIONS]
    found = []
    for more in ([], ["--cluster.address", "local"]):
        run([*words, *more])
        (path,) = tmp_path.glob("runs/weights/*/benchmark/predictions.npz")
        found.append(path.read_bytes())
        path.unlink()
    assert found[0] == found[1]
    assert session.calls


@pytest.mark.parametrize("wrong", ["model", "missing"])
def test_a_node_that_differs_says_how(trained, wrong, tmp_path):
    worker = benchmark.Tester(Place(".", (jaxtrain.__version__, jax.__version__), 0.0), False)
    worker.ready()
    where = tmp_path if wrong == "missing" else trained / RUNS[0]
    few = ArraySource(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int32))
    with pytest.raises(UserError, match="another model on this node" if wrong == "model" else str(tmp_path)):
        worker.block(few, where, ["0"])


@pytest.mark.slow
def test_ray_computes_predictions(compared):
    pytest.importorskip("ray")
    assert compared("many", "--cluster.address", "local") == compared("one")
