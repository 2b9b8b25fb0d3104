"""Several labels per image, as people write them down: matrices, lists, columns and texts; and their splits."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxtrain.config import DataConfig
from jaxtrain.data.arrays import from_arrays
from jaxtrain.data.objects import objects_dataset
from jaxtrain.data.sources import load_dataset
from jaxtrain.data.splits import stratified_split, stratified_subset
from jaxtrain.errors import UserError

NAMES = ("bird", "cat", "dog")
RNG = np.random.default_rng(0)
LABELS = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1], [1, 0, 0]] * 4)
IMAGES = RNG.integers(0, 256, (24, 6, 6, 3), np.uint8)
SPLITS = ["train"] * 12 + ["val"] * 6 + ["test"] * 6
LISTS = [[NAMES[i] for i in np.flatnonzero(row)] for row in LABELS]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for place, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"{place}.png")
    return tmp_path


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return f"{path.suffix[1:]}:{path}"


def check(dataset, labels=LABELS):
    assert (dataset.multilabel, dataset.class_names) == (True, NAMES)
    test = dataset.open_test()
    for source, places in ((dataset.train, slice(12)), (dataset.val, slice(12, 18)), (test, slice(18, 24))):
        np.testing.assert_array_equal(source.labels, labels[places])
        assert source.labels.dtype == np.int8


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_for_each_label(folder, kind):
    labels = LABELS.copy()
    labels[2, 1] = labels[13, 0] = -1
    rows = []
    for place, row in enumerate(labels.tolist()):
        row = [None if kind == "jsonl" and value < 0 else value for value in row]
        cells = dict(zip(NAMES, row, strict=True))
        if kind == "csv" and place == 2:
            cells["cat"] = ""
        rows.append({"image": f"{place}.png", "split": SPLITS[place], **cells})
    dataset = load_dataset(DataConfig(name=write(folder / f"table.{kind}", rows), columns={"labels": NAMES}))
    check(dataset, labels)
    assert set(dataset.train.metadata) == set()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_lists_of_names(folder, kind):
    rows = [{"image": f"{i}.png", "split": SPLITS[i], "labels": LISTS[i]} for i in range(24)]
    check(load_dataset(DataConfig(name=write(folder / f"table.{kind}", rows))))


def test_names_parted_by_a_bar(folder):
    rows = [{"image": f"{i}.png", "split": SPLITS[i], "label": "|".join(LISTS[i])} for i in range(24)]
    rows = [row for row in rows if row["label"]]
    name = write(folder / "table.csv", rows)
    dataset = load_dataset(DataConfig(name=name, task="multilabel"))
    assert dataset.class_names == NAMES
    np.testing.assert_array_equal(dataset.train.labels, LABELS[:12][LABELS[:12].any(axis=1)])


def test_arrays_objects_and_npz_agree(folder):
    parts = {"train": slice(12), "val": slice(12, 18), "test": slice(18, 24)}
    train, val, test = ((IMAGES[part], LABELS[part]) for part in parts.values())
    check(from_arrays(*train, validation=val, test=test, class_names=NAMES))
    pictures = [Image.fromarray(image) for image in IMAGES]
    named = {name: (pictures[part], LISTS[part]) for name, part in parts.items()}
    config = DataConfig()
    check(objects_dataset(*named["train"], validation=named["val"], test=named["test"], config=config))
    arrays = {f"x_{name}": IMAGES[part] for name, part in parts.items()}
    arrays |= {f"y_{name}": LABELS[part] for name, part in parts.items()}
    np.savez(folder / "set.npz", class_names=np.array(NAMES), **arrays)
    check(load_dataset(DataConfig(name=f"npz:{folder / 'set.npz'}")))


def test_what_is_wrong_is_one_line(folder):
    rows = [{"image": f"{i}.png", "label": "a", **dict(zip(NAMES, LABELS[i].tolist(), strict=True))} for i in range(24)]
    name = write(folder / "table.csv", rows)
    for columns, told in (
        ({"labels": ("bird", "cta")}, "'cta'.*cat"),
        ({"labels": ("bird", "bird")}, "each once"),
        ({"labels": ("bird", "label")}, "row 1, 'label': 'a'"),
        ({"labels": NAMES, "label": "label"}, "give one of them"),
    ):
        with pytest.raises(UserError, match=told):
            load_dataset(DataConfig(name=name, columns=columns))
    with pytest.raises(UserError, match=r"data\.task multilabel"):
        load_dataset(DataConfig(name="digits", task="multilabel"))
    lists = [{"image": f"{i}.png", "labels": LISTS[i] if i else None} for i in range(24)]
    with pytest.raises(UserError, match="1 rows have no labels, the first: 1"):
        load_dataset(DataConfig(name=write(folder / "table.jsonl", lists)))


def test_held_out_parts_keep_the_shares_of_every_label():
    """Far closer than drawing at random, of which rare labels may have none (Sechidis et al. 2011)."""
    rng = np.random.default_rng(0)
    shares = np.array([0.5, 0.2, 0.05, 0.02, 0.006])
    labels = (rng.random((1000, 5)) < shares).astype(np.int8)
    labels[:20, 0] = -1
    held_counts, random_counts = [], []
    for seed in range(10):
        kept, held = stratified_split(labels, 0.2, seed)
        assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(1000))
        assert abs(len(held) - 200) <= 5
        held_counts.append((labels[held] == 1).sum(axis=0))
        random_counts.append((labels[rng.permutation(1000)[:200]] == 1).sum(axis=0))
    wanted = 0.2 * (labels == 1).sum(axis=0)
    assert np.abs(np.array(held_counts) - wanted).max() <= 1.5
    assert np.abs(np.array(random_counts) - wanted).max() > 5
    assert not np.array_equal(stratified_split(labels, 0.2, 0)[1], stratified_split(labels, 0.2, 1)[1])
    some = stratified_subset(labels, 300, 0)
    assert len(some) == len(set(some.tolist())) == 300
    assert np.abs((labels[some] == 1).sum(axis=0) - 1.5 * wanted).max() <= 5
