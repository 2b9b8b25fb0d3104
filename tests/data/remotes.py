"""The same images at remote addresses, in every form that can be there: `form(root, folder, address) -> data.name`."""

import csv
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from jaxtrain.config import DataConfig
from jaxtrain.data.packing import pack
from tests.data.forms import rows_of, tar_of


def upload(folder, address):
    """Every file below a folder, under its path within it."""
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            with fsspec.open(f"{address}/{path.relative_to(folder).as_posix()}", "wb") as file:
                file.write(path.read_bytes())


def folders(root, folder, address):
    upload(root, address)
    return f"folder:{address}"


def table_of_paths(root, folder, address):
    """Beside the images, with paths relative to it."""
    upload(root, f"{address}/images")
    _write_table(root, folder, "../images")
    upload(folder / "table", f"{address}/table")
    return f"csv:{address}/table/table.csv"


def local_table(root, folder, address):
    upload(root, address)
    _write_table(root, folder, address)
    return f"csv:{folder}/table/table.csv"


def _write_table(root, folder, before):
    rows = [{**row, "image": f"{before}/{Path(row['image']).relative_to(root).as_posix()}"} for row in rows_of(root)]
    (folder / "table").mkdir()
    with open(folder / "table/table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def parquet(root, folder, address):
    rows = [{**row, "image": {"bytes": Path(row["image"]).read_bytes(), "path": None}} for row in rows_of(root)]
    (folder / "table").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "table/table.parquet", row_group_size=7)
    upload(folder / "table", address)
    return f"parquet:{address}/table.parquet"


def tar(root, folder, address):
    (folder / "tar").mkdir()
    tar_of(root, folder / "tar")
    upload(folder / "tar", address)
    return f"wds:{address}/all.tar"


def shards(root, folder, address):
    pack(DataConfig(name=f"folder:{root}"), folder / "packed")
    upload(folder / "packed", address)
    return f"wds:{address}"


REMOTE = {
    "folders": folders,
    "table": table_of_paths,
    "local table": local_table,
    "parquet": parquet,
    "tar": tar,
    "shards": shards,
}
