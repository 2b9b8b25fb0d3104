"""Tables of images: the same data set as a folder of the same images, and one line for each fault."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxtrain.config import DataConfig
from jaxtrain.data.sources import load_dataset
from jaxtrain.errors import RunError, UserError


@pytest.fixture
def rows(tmp_path):
    """Images in class folders, and what a table says of them."""
    rng, found = np.random.default_rng(0), []
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for name in ("cat", "dog", "emu"):
            for i in range(count):
                path = tmp_path / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).save(path)
                found.append({"image": f"{split}/{name}/{i}.png", "label": name, "split": split, "camera": f"c{i % 2}"})
    return found


def write(root, kind, rows, *, encoded=False, name="table"):
    path = root / f"{name}.{kind}"
    if kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        if encoded:
            rows = [{**row, "image": {"bytes": (root / row["image"]).read_bytes(), "path": None}} for row in rows]
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return path


def load(path, **options):
    return load_dataset(DataConfig(name=f"{path.suffix[1:]}:{path}", **{"val_fraction": 0.0, **options}))


KINDS = [("csv", False), ("jsonl", False), ("parquet", False), ("parquet", True)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(("kind", "encoded"), KINDS)
def test_a_table_is_the_folder_of_the_same_images(tmp_path, rows, kind, encoded):
    found, folder = (
        load(write(tmp_path, kind, rows, encoded=encoded)),
        load_dataset(DataConfig(name=f"folder:{tmp_path}", val_fraction=0.0)),
    )
    assert (found.class_names, found.uniform_size, found.channels) == (("cat", "dog", "emu"), (6, 5), 3)
    for mine, theirs in zip(
        (found.train, found.val, found.open_test()), (folder.train, folder.val, folder.open_test()), strict=True
    ):
        assert mine.labels.tolist() == theirs.labels.tolist()
        assert [mine.read(i) for i in range(len(mine))] == [theirs.read(i) for i in range(len(theirs))]
    assert found.open_test().metadata["camera"].tolist() == ["c0", "c1", "c0"] * 3
    assert "label: label" in found.taken


def test_splits_are_drawn_as_from_a_folder(tmp_path, rows):
    root = tmp_path / "flat"
    root.mkdir()
    rows = [row for row in rows if row["split"] == "train"]
    table = write(tmp_path, "csv", [{k: v for k, v in row.items() if k != "split"} for row in rows])
    options = {"val_fraction": 0.2, "test_fraction": 0.2, "split_seed": 3}
    mine, theirs = load(table, **options), load_dataset(DataConfig(name=f"folder:{tmp_path}/train", **options))
    for one, other in ((mine.train, theirs.train), (mine.val, theirs.val), (mine.open_test(), theirs.open_test())):
        assert [one.read(i) for i in range(len(one))] == [other.read(i) for i in range(len(other))]


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        (["10", "9", "10", "9"], ("9", "10"), (9, 10)),
        (["007", "9", "007", "9"], ("007", "9"), ("007", "9")),
        (["NA", "null", "NA", "null"], ("NA", "null"), ("NA", "null")),
        (["1", "0", "1", "0"], ("0", "1"), None),
        ([" cat", "dog ", "cat", "dog"], ("cat", "dog"), ("cat", "dog")),
    ],
)
def test_labels_of_csv(tmp_path, rows, labels, names, classes):
    rows = [{"image": row["image"], "label": label} for row, label in zip(rows, labels, strict=False)]
    found = load(write(tmp_path, "csv", rows))
    assert (found.class_names, found.classes) == (names, classes)


def test_columns_by_other_names(tmp_path, rows):
    rows = [{"": i, "weight": 3.5, "FileName": r["image"], "sort": r["label"]} for i, r in enumerate(rows)]
    table = write(tmp_path, "csv", rows)
    with pytest.raises(UserError, match=r"hold the label.*FileName, sort: give data\.columns\.label"):
        load(table)
    found = load(table, columns={"label": "sort"})
    assert found.taken == "label: sort, image: FileName, weight: weight"
    assert found.train.metadata == {}
    sliced = load(table, columns={"label": "sort", "weight": "weight"})
    assert sliced.train.weights.tolist() == [1.0] * len(rows)
    with pytest.raises(UserError, match=r"data\.columns\.label: .* no column 'srot': did you mean 'sort'"):
        load(table, columns={"label": "srot"})


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_and_a_byte_order_mark(tmp_path, rows, delimiter):
    lines = [delimiter.join(("image", "label")), *(delimiter.join((r["image"], r["label"])) for r in rows)]
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    assert load(tmp_path / "t.csv").class_names == ("cat", "dog", "emu")


def test_weights_count_in_training_alone(tmp_path, rows):
    for i, row in enumerate(rows):
        row["weight"] = i % 3
    found = load(write(tmp_path, "jsonl", rows))
    assert found.train.weights.tolist() == [0.0, 1.0, 2.0] * 6
    assert found.val.weights.tolist() == [1.0] * 6


def test_class_names_that_datasets_wrote(tmp_path, rows):
    table = pa.Table.from_pylist([{"image": row["image"], "label": i % 2} for i, row in enumerate(rows)])
    noted = {"info": {"features": {"label": {"names": ["pos", "neg"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(noted)}), tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet").class_names == ("pos", "neg")


def test_test_images_without_labels_are_no_test_set(tmp_path, rows, caplog):
    for row in rows:
        row["label"] = "" if row["split"] == "test" else row["label"]
    assert load(write(tmp_path, "csv", rows)).open_test() is None
    assert "test images have no labels" in caplog.text


def _set(**values):
    def change(rows):
        rows[3].update(values)

    return change


def _both(rows):
    rows.append({**rows[0], "label": "dog"})
    rows.append({**rows[1], "label": "emu"})


def _elsewhere(rows):
    for row in rows:
        row["image"] = f"gone/{row['image']}"


def _without(column):
    def change(rows):
        for row in rows:
            del row[column]

    return change


WRONG = {
    "no image column": (_without("image"), r"hold the image.*label, split, camera: give data\.columns\.image"),
    "no label column": (_without("label"), r"hold the label.*data\.columns\.label"),
    "no label": (_set(label=""), r"train: row 4 has no label"),
    "no split": (_set(split=""), r"row 4 has no split"),
    "no image": (_set(image=""), r"row 4 has no image"),
    "other split": (_set(split="tarin"), r"row 4 has the split 'tarin'.*'train'"),
    "no training rows": (lambda rows: [row.update(split="test") for row in rows], "no rows of the split train"),
    "unknown label in test": (lambda rows: [row.update(label="cta") for row in rows[-2:]], r"test: 2 rows.*cta.*'cat'"),
    "two labels": (_both, r"2 images have more than one label, the first: train/cat/0\.png \(cat, dog\)"),
    "files elsewhere": (_elsewhere, r"none of its files exists.*gone/.*relative to"),
    "remote": (_set(image="ftp://host/a.png"), r"ftp://host/a\.png: ftp:// is not read"),
    "weights": (lambda rows: [row.update(weight="heavy") for row in rows], r"weight: weights must be numbers"),
    "negative weight": (
        lambda rows: [row.update(weight=-1) for row in rows],
        r"weight must be 18 numbers of at least 0",
    ),
    "one class": (lambda rows: [row.update(label="cat") for row in rows], r"one class only"),
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("fault", WRONG)
def test_wrong_tables_get_one_line(tmp_path, rows, fault, kind):
    change, told = WRONG[fault]
    change(rows)
    if kind == "parquet":
        rows = [{key: None if value == "" else value for key, value in row.items()} for row in rows]
    path = write(tmp_path, kind, rows)
    with pytest.raises(UserError, match=told) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.csv", b"", "cannot be read|no rows"),
        ("t.csv", b"image,label\n", "no rows"),
        ("t.csv", b"image,label\na.png,cat\nb.png,dog,3\n", "2 columns, got 3"),
        ("t.csv", b"image,label\n\xff\xfe.png,cat\n", "not valid UTF-8"),
        ("t.csv", b"image,label,label\na.png,cat,dog\n", "column 'label' twice"),
        ("t.csv", b"\x89PNG\r\n\x1a\n\0\0", "not valid UTF-8"),
        ("t.jsonl", b'{"image": "a.png", "label"\n', "cannot be read"),
        ("t.jsonl", b'{"image": "a.png", "label": 0.5}\n', "numbers with fractions"),
        ("t.jsonl", b'{"image": ["a.png"], "label": 1}\n', "must be paths of files"),
        ("t.jsonl", b'{"image": "a.png", "label": {"a": 1}}\n', "must be names, numbers or lists"),
        ("t.parquet", b"PAR1 and no more", "cannot be read"),
        ("t.parquet", b"", "cannot be read"),
    ],
)
def test_files_that_are_no_tables_get_one_line(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_unreadable_images_are_counted_as_in_a_folder(tmp_path, rows):
    (tmp_path / rows[4]["image"]).unlink()
    (tmp_path / rows[5]["image"]).write_bytes(b"<html>")
    table = write(tmp_path, "csv", rows)
    with pytest.raises(RunError, match=r"2 unreadable images.*4\.png: No such file.*5\.png: .*web page"):
        load(table)
    assert len(load(table, max_bad_images=2).train) == 16


def test_images_that_are_missing_in_parquet(tmp_path, rows):
    path = write(tmp_path, "parquet", rows, encoded=True)
    table = pq.read_table(path).to_pylist()
    table[2]["image"] = None
    table[3]["image"]["bytes"] = b""
    pq.write_table(pa.Table.from_pylist(table), path)
    with pytest.raises(RunError, match=r"2 unreadable images.*row 3: .*row 4: "):
        load(path)
    found = load(path, max_bad_images=2)
    assert found.train.describe(2) == f"{path} row 5"
    assert found.train.read(2) == (tmp_path / rows[4]["image"]).read_bytes()


def test_an_image_in_two_splits_is_warned_about(tmp_path, rows, caplog):
    load(write(tmp_path, "csv", [*rows, {**rows[0], "split": "test"}]))
    assert "1 images are in more than one split, the first: train/cat/0.png" in caplog.text


def test_a_changed_parquet_file_is_read_again(tmp_path, rows):
    path = write(tmp_path, "parquet", rows, encoded=True)
    first = load(path).train.read(0)
    write(tmp_path, "parquet", rows[1:], encoded=True)
    assert load(path).train.read(0) == (tmp_path / rows[1]["image"]).read_bytes() != first


def test_columns_of_what_is_no_table_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.columns: .*csv.*not of digits"):
        load_dataset(DataConfig(columns={"label": "x"}))
