"""The same images as a folder and in every other form that can be named."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

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


FORMS = {"csv": csv_of, "jsonl": jsonl_of, "parquet": parquet_of, "parquet with images": encoded_parquet_of}
"""`form(root, folder) -> data.name`: writes what it needs into the folder."""
