"""Images embedded by workers: the store of one machine, byte for byte, whoever is lost."""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxtrain
from jaxtrain.classifiers.embedding import open_embedding
from jaxtrain.cli.main import run
from jaxtrain.cluster import embed
from jaxtrain.cluster.node import Place
from jaxtrain.cluster.pool import Parts
from jaxtrain.config import Config
from jaxtrain.data.base import FileSource
from jaxtrain.embeddings.store import EmbeddingStore
from jaxtrain.errors import RunError, UserError
from tests.cluster.made import Here, add_node, connect, kill

ROOT = Path(__file__).resolve().parents[2]
SIDE, BATCH = 8, 32


def write_images(folder, count):
    """Two folders of pictures, one for each class."""
    for label in range(2):
        (folder / str(label)).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(folder / str(number % 2) / f"{number:05d}.png")


def train(folder):
    """The network whose backbone embeds."""
    images = np.random.default_rng(1).integers(0, 256, (40, SIDE, SIDE, 3), np.uint8)
    options = {"model": {"name": "mlp_tiny"}, "train": {"steps": 2, "batch_size": 8}, "tracking": {"enabled": False}}
    jaxtrain.PTClassifier(**options, run_dir=folder / "run", quiet=True).fit(images, np.arange(40) % 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained network, and 300 pictures."""
    folder = tmp_path_factory.mktemp("embed")
    train(folder)
    write_images(folder / "pictures", 300)
    return folder


def words(folder, store, *more):
    options = {
        "data.name": f"folder:{folder / 'pictures'}",
        "data.val_fraction": "0.2",
        "model.weights": str(folder / "run"),
        "features.batch_size": str(BATCH),
        "features.store": str(store),
    }
    return ["embed", "compute", "--json", *(word for name in options for word in (f"--{name}", options[name])), *more]


def embedded(folder, store, capsys, *more):
    capsys.readouterr()
    run(words(folder, store, *more))
    return json.loads(capsys.readouterr().out)


def content(store):
    """Every file of a store but those that only say who uses it."""
    files = [path for path in store.rglob("*") if path.is_file() and path.name not in ("used", ".cluster.lock")]
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


@pytest.fixture
def cluster(monkeypatch):
    """One whose workers are objects of this process, and blocks of two batches in shards of three."""
    monkeypatch.setitem(EmbeddingStore.__init__.__kwdefaults__, "shard_images", 3 * BATCH)
    return connect(Here(room=3), monkeypatch, 2 * BATCH)


ON_CLUSTER = ("--cluster.address", "local", "--cluster.workers", "2")


def test_the_store_of_a_cluster_is_that_of_one_machine_also_in_two_starts(folder, tmp_path, cluster, capsys):
    expected = embedded(folder, tmp_path / "one", capsys)
    assert [split["images"] for split in expected.values()] == [240, 60]
    cluster.lost = (2,)
    found = embedded(folder, tmp_path / "many", capsys, *ON_CLUSTER)
    assert content(tmp_path / "many") == content(tmp_path / "one")
    assert {name: split["sha256"] for name, split in found.items()} == {
        name: split["sha256"] for name, split in expected.items()
    }
    assert cluster.most == 2
    assert cluster.workers == 3  # two, and one for the lost one: they are kept for all parts of all splits
    before, cluster.lost = cluster.calls, range(cluster.calls + 3, 1000)
    with pytest.raises(RunError, match="lost in a row"):
        embedded(folder, tmp_path / "cut", capsys, *ON_CLUSTER)
    kept = content(tmp_path / "cut")
    assert 0 < len(kept) < len(content(tmp_path / "one"))
    cluster.lost = ()
    again = embedded(folder, tmp_path / "cut", capsys, *ON_CLUSTER)
    assert content(tmp_path / "cut") == content(tmp_path / "one")
    assert 0 < again["train"]["computed"] < 240
    assert before < cluster.calls


@pytest.mark.slow
def test_a_run_of_feature_extraction_finds_what_was_embedded(folder, tmp_path, capsys):
    embedded(folder, tmp_path / "store", capsys)
    given = words(folder, tmp_path / "store")[3:]
    run(["train", "--technique", "fe", *given, "--run-dir", str(tmp_path / "fe"), "--tracking.enabled", "False"])
    assert json.loads((tmp_path / "fe" / "summary.json").read_text())["cache_hit"]


def test_one_driver_at_a_time_fills_a_store(folder, tmp_path, cluster):
    with embed.alone(tmp_path), pytest.raises(UserError, match="another process fills the embedding store") as caught:
        run(words(folder, tmp_path, *ON_CLUSTER))
    assert "\n" not in str(caught.value)
    assert cluster.calls == 0


def test_an_unreadable_image_is_named_and_counted_as_on_one_machine(folder, tmp_path, cluster, capsys):
    (tmp_path / "pictures").symlink_to(folder / "pictures")
    (tmp_path / "run").symlink_to(folder / "run")
    write_images(tmp_path / "some", 100)
    (tmp_path / "some" / "1" / "00031.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    options = ["--data.name", f"folder:{tmp_path / 'some'}", "--data.max_bad_images", "1"]
    expected = embedded(tmp_path, tmp_path / "one", capsys, *options)
    assert embedded(tmp_path, tmp_path / "many", capsys, *options, *ON_CLUSTER).keys() == expected.keys()
    assert content(tmp_path / "many") == content(tmp_path / "one")
    with pytest.raises(RunError, match=r"1 unreadable image, data.max_bad_images allows 0: .*00031\.png"):
        embedded(tmp_path, tmp_path / "none", capsys, *options[:2], *ON_CLUSTER)


def test_what_a_node_that_lacks_the_images_gives_is_not_kept(folder, tmp_path, cluster, monkeypatch, capsys):
    def blind(worker, part, view):
        return np.full((len(part), 64), np.nan, np.float32), {
            part.describe(i): "No such file" for i in range(len(part))
        }

    monkeypatch.setattr(embed.Embedder, "block", blind)
    with pytest.raises(
        RunError, match=r"png: a node of the cluster cannot read it \(No such file\), and the driver can"
    ):
        embedded(folder, tmp_path / "many", capsys, "--data.max_bad_images", "1000", *ON_CLUSTER)
    assert not list((tmp_path / "many").rglob("*.npy"))


def test_a_worker_gets_its_block_of_the_images_and_nothing_else():
    few, many = (
        len(pickle.dumps(Parts(FileSource([f"{n:09d}.png" for n in range(size)], np.zeros(size)), 64)[0]))
        for size in (40_960, 409_600)
    )
    assert few == many < 200_000


@pytest.mark.parametrize("wrong", ["versions", "folder", "weights"])
def test_a_node_that_differs_says_how(folder, wrong, tmp_path):
    config = Config.model_validate(
        {
            "technique": "fe",
            "data": {"name": f"folder:{folder / 'pictures'}"},
            "model": {"weights": str(folder / "run")},
        }
    )
    opened = open_embedding(config)
    digest = "0" * 64 if wrong == "weights" else opened.backbone.digest
    wanted = ("0", "0") if wrong == "versions" else (jaxtrain.__version__, jax.__version__)
    where = str(tmp_path / "away") if wrong == "folder" else "."
    worker = embed.Embedder(Place(where, wanted, 0.0), opened.config, 2, digest)
    with pytest.raises(
        UserError, match={"versions": "installed", "folder": "away", "weights": "others on this"}[wrong]
    ):
        worker.ready()


def start(folder, *arguments):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "jaxtrain", *arguments], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip


def finish(process):
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return output


def until(condition, process):
    deadline = time.monotonic() + 400
    while not condition() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    assert process.poll() is None, "it ended before a node was killed"


@pytest.mark.slow
@pytest.mark.parametrize("count", [5000, pytest.param(20_000, marks=pytest.mark.soak)])
def test_files_are_embedded_and_labelled_once_each_on_three_nodes_of_which_two_are_killed(count, tmp_path, monkeypatch):
    ray_cluster = pytest.importorskip("ray.cluster_utils").Cluster()
    train(tmp_path)
    write_images(tmp_path / "pictures", count)
    predict = ["predict", str(tmp_path / "run"), str(tmp_path / "pictures"), "--embeddings", "--out"]
    alone = json.loads(finish(start(tmp_path, *words(tmp_path, tmp_path / "one"))))
    finish(start(tmp_path, *predict, str(tmp_path / "one.jsonl")))
    on_cluster = ["--cluster.address", "auto", "--cluster.resources", "cpu=1"]
    try:
        add_node(ray_cluster, 0)
        nodes = [add_node(ray_cluster, 1) for _ in range(3)]
        monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
        process = start(tmp_path, *words(tmp_path, tmp_path / "many", *on_cluster))
        until(lambda: list((tmp_path / "many").rglob("*.npy")), process)
        kill(ray_cluster, nodes.pop())
        found = json.loads(finish(process))
        add_node(ray_cluster, 1)
        process = start(tmp_path, *predict, str(tmp_path / "many.jsonl"), *on_cluster)
        partial = tmp_path / "many.jsonl.partial"
        until(lambda: partial.exists() and partial.stat().st_size > 1000, process)
        kill(ray_cluster, nodes.pop())
        finish(process)
    finally:
        ray_cluster.shutdown()
    assert sum(split["images"] for split in found.values()) == count
    assert {name: split["sha256"] for name, split in found.items()} == {
        name: split["sha256"] for name, split in alone.items()
    }
    assert content(tmp_path / "many") == content(tmp_path / "one")
    rows = (tmp_path / "many.jsonl").read_bytes()
    assert rows == (tmp_path / "one.jsonl").read_bytes()
    assert len({json.loads(row)["file"] for row in rows.splitlines()}) == len(rows.splitlines()) == count
