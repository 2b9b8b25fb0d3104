"""Files labelled by workers: the rows of one machine, in their order, whoever is lost."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import jaxtrain
from jaxtrain.cli.main import run
from jaxtrain.cluster import pool, predict
from jaxtrain.cluster.node import Place
from jaxtrain.cluster.pool import Pool, Workers
from jaxtrain.errors import RunError, UserError
from tests.cluster.made import Here, connect


class Squares:
    def ready(self):
        pass

    def block(self, number):
        return number**2


@pytest.mark.parametrize("seed", range(5))
def test_results_come_in_order_and_lost_blocks_are_done_again(seed):
    session = Here(room=3, lost=(1, 4, 9), seed=seed)
    assert list(Pool(Workers(session, {}), Squares, ()).in_order(range(30))) == [number**2 for number in range(30)]
    assert session.calls == 33
    assert session.most == 3
    assert session.workers == 6


def test_a_worker_for_which_there_is_no_room_is_not_waited_for():
    session = Here(room=3, never=(2, 3))
    assert list(Pool(Workers(session, {}), Squares, ()).in_order(range(30))) == [number**2 for number in range(30)]
    assert session.workers == 3


def test_workers_that_are_all_lost_end_it():
    with pytest.raises(RunError, match="10 workers were lost in a row, the last one: its node died"):
        list(Pool(Workers(Here(lost=range(1000)), {}), Squares, ()).in_order(range(30)))


@pytest.mark.parametrize("count", [0, 1, 63, 1024, 1025, 2047, 2048, 5000])
@pytest.mark.parametrize("batch_size", [64, 100, 4096])
def test_blocks_are_whole_batches_and_the_last_has_the_rest(count, batch_size):
    blocks = pool.cut(range(count), batch_size)
    assert [file for block in blocks for file in block] == list(range(count))
    assert all(len(block) % batch_size == 0 for block in blocks[:-1])
    assert len(blocks) == 1 or len(blocks[-1]) >= batch_size


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and a folder of pictures of which one is none."""
    folder = tmp_path_factory.mktemp("predict")
    images, labels = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), np.uint8), np.arange(40) % 3
    options = {"model": {"name": "mlp_tiny"}, "train": {"steps": 2, "batch_size": 8}, "tracking": {"enabled": False}}
    jaxtrain.PTClassifier(**options, run_dir=folder / "run", quiet=True).fit(images, labels)
    (folder / "pictures").mkdir()
    for number in range(45):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number:02d}.png")
    (folder / "pictures" / "17.png").write_text("no picture")
    return folder


def labelled(folder, out, *words):
    with pytest.raises(RunError, match="1 of 45 images"):
        run(["predict", str(folder / "run"), str(folder / "pictures"), "--out", str(out), "--embeddings", *words])
    return out.read_bytes()


def test_the_table_of_a_cluster_is_that_of_one_machine_also_in_two_starts(trained, tmp_path, monkeypatch):
    session = connect(Here(room=2, lost=(2,)), monkeypatch, 16)
    expected = labelled(trained, tmp_path / "one.jsonl")
    assert labelled(trained, tmp_path / "many.jsonl", "--cluster.address", "local") == expected
    assert session.workers >= 2
    session.lost = range(session.calls + 2, 1000)
    words = ["predict", str(trained / "run"), str(trained / "pictures"), "--out", str(tmp_path / "cut.jsonl")]
    with pytest.raises(RunError, match="lost in a row"):
        run([*words, "--embeddings", "--cluster.address", "local"])
    assert 0 < len((tmp_path / "cut.jsonl.partial").read_text().splitlines()) - 1 < 45
    session.lost, before = (), session.calls
    assert labelled(trained, tmp_path / "cut.jsonl", "--cluster.address", "local") == expected
    assert session.calls - before < 3


@pytest.mark.parametrize("wrong", ["versions", "folder", "model"])
def test_a_node_that_differs_says_how(trained, wrong, tmp_path):
    labelling = predict.Labelling(trained / "run", None, False)
    digests = predict.weights_digests(jaxtrain.load(trained / "run"))
    if wrong == "model":
        digests = ["0"] * len(digests)
    wanted = ("0", "0") if wrong == "versions" else (jaxtrain.__version__, jax.__version__)
    folder = str(tmp_path / "away") if wrong == "folder" else "."
    with pytest.raises(UserError, match={"versions": "installed", "folder": "away", "model": "another model"}[wrong]):
        predict.Labeller(Place(folder, wanted, 0.0), labelling, digests, False).ready()


def test_a_cluster_needs_a_table(tmp_path):
    with pytest.raises(UserError, match="give --out"):
        run(["predict", str(tmp_path), str(tmp_path), "--cluster.address", "local"])


@pytest.mark.slow
def test_ray_labels_files_as_one_machine_does(trained, tmp_path):
    pytest.importorskip("ray")
    expected = labelled(trained, tmp_path / "one.jsonl")
    assert labelled(trained, tmp_path / "many.jsonl", "--cluster.address", "local") == expected
    assert json.loads(expected.splitlines()[0])["embedding"]
