"""The same images as a folder and in every other form that can be named."""

import csv
import json
import tarfile
from pathlib import Path

import grain
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxtrain.config import DataConfig
from jaxtrain.data.packing import pack

CLASSES = ("cat", "dog", "emu")
COUNTS = {"train": 12, "val": 4, "test": 4}


def write_folder(root):
    """Class folders under train, val and test, of images of 8x8."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for place, name in enumerate(CLASSES):
            for i in range(count):
                path = root / split / name / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((rng.integers(0, 100, (8, 8, 3)) + 70 * place).astype(np.uint8)).save(path)


def rows_of(root):
    """What a table says of such a folder, in its order."""
    files = sorted(path for split in COUNTS for path in (root / split).rglob("*.png"))
    return [{"image": str(path), "label": path.parts[-2], "split": path.parts[-3]} for path in files]


def csv_of(root, folder):
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        rows = rows_of(root)
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return f"csv:{folder}/table.csv"


def jsonl_of(root, folder):
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(root)), encoding="utf-8")
    return f"jsonl:{folder}/table.jsonl"


def parquet_of(root, folder):
    pq.write_table(pa.Table.from_pylist(rows_of(root)), folder / "table.parquet")
    return f"parquet:{folder}/table.parquet"


def encoded_parquet_of(root, folder):
    rows = [{**row, "image": {"bytes": Path(row["image"]).read_bytes(), "path": None}} for row in rows_of(root)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "table.parquet", row_group_size=7)
    return f"parquet:{folder}/table.parquet"


def hugging_face_folder(root, folder):
    given = hugging_face(root, folder)["images"]
    given.save_to_disk(folder / "saved")
    return f"hf:{folder}/saved"


def hugging_face_parquet(root, folder):
    for split, part in hugging_face(root, folder)["images"].items():
        part.to_parquet(folder / "set" / f"{split}-00000-of-00001.parquet")
    return f"hf:{folder}/set"


def class_folders(root, folder):
    pytest.importorskip("datasets")
    return f"hf:{root}"


def tar_of(root, folder):
    with tarfile.open(folder / "all.tar", "w") as tar:
        for split in ("train", "val", "test"):
            for path in sorted((root / split).rglob("*.png")):
                tar.add(path, path.relative_to(root))
    return f"wds:{folder}/all.tar"


def packed_of(root, folder):
    return pack(DataConfig(name=f"folder:{root}"), folder / "packed")


FORMS = {
    "csv": csv_of,
    "jsonl": jsonl_of,
    "parquet": parquet_of,
    "parquet with images": encoded_parquet_of,
    "tar": tar_of,
    "packed": packed_of,
    "hf saved": hugging_face_folder,
    "hf parquet": hugging_face_parquet,
    "hf folders": class_folders,
}
"""`form(root, folder) -> data.name`: writes what it needs into the folder."""


class MapStyle:
    """What torch calls a map-style data set, without torch."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        return np.asarray(Image.open(row["image"])), CLASSES.index(row["label"])


class OwnSource:
    """An `ImageSource` of somebody else's."""

    def __init__(self, rows):
        self.rows = rows
        self.labels = np.array([CLASSES.index(row["label"]) for row in rows], np.int32)

    def __len__(self):
        return len(self.rows)

    def read(self, index):
        return Path(self.rows[index]["image"]).read_bytes()

    def describe(self, index):
        return self.rows[index]["image"]

    def select(self, indices):
        return OwnSource([self.rows[i] for i in indices])


def by_split(root):
    rows = rows_of(root)
    return {split: [row for row in rows if row["split"] == split] for split in COUNTS}


def _pairs(root, make):
    """Images made of the rows of each split, with their labels beside them."""
    found = {split: (make(rows), [row["label"] for row in rows]) for split, rows in by_split(root).items()}
    images, labels = found["train"]
    return {"images": images, "labels": labels, "validation": found["val"], "test": found["test"]}


def _sets(root, make):
    """Sets made of the rows of each split, with their labels in them."""
    found = {split: make(rows) for split, rows in by_split(root).items()}
    return {"images": found["train"], "validation": found["val"], "test": found["test"], "class_names": CLASSES}


def paths(root, folder):
    return _pairs(root, lambda rows: [row["image"] for row in rows])


def pictures(root, folder):
    return _pairs(root, lambda rows: [Image.open(row["image"]) for row in rows])


def column(root, folder):
    return _pairs(root, lambda rows: pd.DataFrame(rows)["image"])


def map_style(root, folder):
    return _sets(root, MapStyle)


def own_source(root, folder):
    return _sets(root, OwnSource)


def grain_set(root, folder):
    return _sets(root, lambda rows: grain.MapDataset.source(MapStyle(rows)).map(_as_mapping))


def _as_mapping(item):
    return {"image": item[0], "label": item[1]}


def torch_set(root, folder):
    torch = pytest.importorskip("torch")

    class Set(torch.utils.data.Dataset, MapStyle):
        def __getitem__(self, index):
            image, label = MapStyle.__getitem__(self, index)
            return torch.tensor(image), torch.tensor(label)

    globals()["Set"] = Set
    Set.__qualname__ = "Set"
    return _sets(root, Set)


def hugging_face(root, folder):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    found = {}
    for split, rows in by_split(root).items():
        columns = {"image": [row["image"] for row in rows], "label": [row["label"] for row in rows]}
        found["validation" if split == "val" else split] = datasets.Dataset.from_dict(columns, features=features)
    return {"images": datasets.DatasetDict(found)}


OBJECTS = {
    "paths": paths,
    "pictures": pictures,
    "column": column,
    "map style": map_style,
    "own source": own_source,
    "grain": grain_set,
    "torch": torch_set,
    "hugging face": hugging_face,
}
"""`form(root, folder) -> arguments of fit`."""
