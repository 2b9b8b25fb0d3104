"""Tables of images: `csv:FILE`, `jsonl:FILE` and `parquet:FILE`, read into Arrow's columns."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import ColumnsConfig
from jaxtrain.errors import UserError, nearest

ROLES = {
    "image": (
        *("image", "img", "path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "img_path"),
        *("image_file", "image_name", "image_id"),
    ),
    "label": ("label", "class", "target", "category", "labels", "class_name", "label_name", "category_name"),
    "split": ("split", "set", "subset", "partition"),
    "weight": ("weight", "sample_weight"),
}
"""What a column may hold, and by which names it is known, the likeliest first."""
_DELIMITERS = (",", "\t", ";")


@contextmanager
def memory_given_back() -> Iterator[None]:
    """Within, pyarrow returns what it needs no more to the system, which its own allocator does late."""
    import pyarrow as pa

    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)
        give_back()


def give_back() -> None:
    """Makes the C library, where it is GNU's, return the small pieces that reading a table leaves behind."""
    import ctypes

    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def read_table(kind: str, path: Path, where: str) -> Any:
    """The table in a file, without Parquet's encoded images (`Table` of pyarrow); UserError where there is none."""
    import pyarrow as pa

    if path.is_dir():
        raise UserError(f"{where} is a folder: name a file")
    try:
        table = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}[kind](path)
    except UnicodeDecodeError:
        raise UserError(f"{where} is not valid UTF-8") from None
    except (pa.ArrowException, csv.Error, OSError) as error:
        text = "not valid UTF-8" if "UTF8" in str(error) else " ".join(str(error).split())[:300]
        raise UserError(f"{where} cannot be read: {text}") from None
    repeated = [name for name, count in Counter(table.column_names).items() if count > 1]
    if repeated:
        raise UserError(f"{where} has the column '{repeated[0]}' twice")
    if not table.num_rows:
        raise UserError(f"{where} has no rows")
    give_back()
    return table


def choose_columns(
    given: ColumnsConfig, names: list[str], where: str, needed: Sequence[str] = ("image", "label")
) -> dict[str, str]:
    """Which column plays which role: the given ones, else those with a common name, in any case.

    Raises UserError for a given column that does not exist, and where there is none that is needed.
    """
    chosen: dict[str, str] = {}
    known = {name.strip().lower(): name for name in reversed(names)}
    for role in ROLES:
        if (column := getattr(given, role)) is not None:
            if column not in names:
                raise UserError(f"data.columns.{role}: {where} has no column '{column}': {nearest(column, names)}")
            chosen[role] = column
    for role, common in ROLES.items():
        free = [known[name] for name in common if name in known and known[name] not in chosen.values()]
        if role not in chosen and free:
            chosen[role] = free[0]
    for role in needed:
        if role not in chosen:
            raise UserError(
                f"{where} has no column that is known to hold the {role} (such as '{ROLES[role][0]}'); it has "
                f"{', '.join(names)}: give data.columns.{role}"
            )
    twice = [role for role, column in chosen.items() if list(chosen.values()).count(column) > 1]
    if twice:
        raise UserError(f"data.columns: '{chosen[twice[0]]}' of {where} is both {' and '.join(twice)}")
    return chosen


def group_values(table: Any, group: str, columns: Mapping[str, str], where: str) -> NDArray[Any]:
    """The text of each row in the column of `data.group`: `object[rows]`.

    Raises UserError where there is no such column, it plays another role, or a row has none.
    """
    if group not in table.column_names:
        raise UserError(f"data.group: {where} has no column '{group}': {nearest(group, table.column_names)}")
    if role := next((role for role, name in columns.items() if name == group and role != "image"), None):
        raise UserError(f"data.group: '{group}' of {where} is the column of the {role}")
    codes, values = coded(table.column(group))
    if (codes < 0).any():
        lacking = int((codes < 0).sum())
        raise UserError(
            f"data.group: {lacking:,} rows of {where} have no {group}, the first: {(codes < 0).argmax() + 1}"
        )
    return np.array([*map(str, values)], object)[codes]


def coded(column: Any) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The place of each row's value among the values that occur, -1 where it has none; and those values.

    Values are `[values]` of the column's own kind: integers, floats, or strings.
    """
    import pyarrow as pa

    array = pa.chunked_array(column).combine_chunks() if isinstance(column, list) else column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    values = array.dictionary.to_pylist()
    texts = any(isinstance(value, str) for value in values)
    return codes, np.array([str(value) for value in values] if texts else values)


def class_names_in(table: Any, column: str) -> tuple[str, ...] | None:
    """Names of a column's classes, as the library `datasets` notes them in the files that it writes."""
    noted = (table.schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(noted)["info"]["features"][column]["names"] if noted else None
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def encoded_images_in(path: Path, column: str) -> bool:
    """Whether a column of a Parquet file holds encoded images, not paths."""
    import pyarrow.parquet as pq

    return _is_binary(pq.read_schema(path).field(column).type)


def _read_csv(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv as arrow_csv

    with open(path, encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        delimiter = max(_DELIMITERS, key=head.count)
        file.seek(0)
        names = next(csv.reader(file, delimiter=delimiter), [])
    parse = arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    # As text: of 007 and NA the reader would make a number and nothing.
    convert = arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    nothing = pa.scalar(None, pa.string())

    def cleaned(column: Any) -> Any:
        column = pc.utf8_trim_whitespace(column)
        return pc.if_else(pc.equal(column, ""), nothing, column)

    with arrow_csv.open_csv(path, parse_options=parse, convert_options=convert) as reader:
        schema = pa.schema([(name.strip(), pa.string()) for name in reader.schema.names])
        parts = [pa.record_batch([cleaned(column) for column in part.columns], schema) for part in reader]
    return pa.Table.from_batches(parts, schema)


def _read_jsonl(path: Path) -> Any:
    from pyarrow import json as arrow_json

    return arrow_json.read_json(path)


def _read_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    table = pq.read_table(path, columns=[field.name for field in schema if not _is_binary(field.type)])
    for field in schema:
        if _is_binary(field.type):
            table = table.append_column(field, pa.nulls(table.num_rows, pa.null()).cast(field.type))
    return table.select(schema.names)


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
