"""A table that is written while it is computed: a start that was cut off goes on where it was."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from jaxtrain.errors import RunError, UserError
from jaxtrain.escape import csv_cell
from jaxtrain.files import file_lock, replacing
from jaxtrain.tracking.journal import complete_lines

FORMATS = (".csv", ".jsonl", ".parquet")
_LISTS = ("top", "embedding")
_BATCH = 1000


class Rows:
    """Rows of `path`, in the format that its name says.

    Until `finish` they are lines of JSON in `path` + `.partial`, each whole or not there. `key` is what they are
    computed from and how: rows of another key are thrown away.
    """

    def __init__(self, path: Path, key: object) -> None:
        """Raises UserError for an unknown format and for a file that is there already."""
        if path.suffix not in FORMATS:
            raise UserError(f"--out {path}: the name has to end in {', '.join(FORMATS)}")
        if path.exists():
            raise UserError(f"--out {path} is there already: remove it, or choose another name")
        if not path.parent.is_dir():
            raise UserError(f"--out {path}: there is no folder {path.parent}")
        self.path, self._partial = path, path.with_name(f"{path.name}.partial")
        self._head = json.dumps({"key": hashlib.sha256(json.dumps(key, default=str).encode()).hexdigest()})
        self.done = 0
        """Rows that an earlier start wrote."""

    def __enter__(self) -> Self:
        self._lock = file_lock(self._partial, timeout=1.0)
        try:
            self._lock.__enter__()
        except TimeoutError:
            raise RunError(f"--out {self.path} is being written by another process") from None
        whole = 0
        with open(self._partial, "rb") as file:
            for number, line in enumerate(complete_lines(file)):
                if number == 0 and line.decode(errors="replace").strip() != self._head:
                    break
                whole += len(line)
                self.done = number
        self._file = open(self._partial, "r+", encoding="utf-8")
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            print(self._head, file=self._file, flush=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._lock.__exit__(None, None, None)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Some more; raises OSError where the disk refuses them."""
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self._file.flush()

    def finish(self) -> int:
        """All rows are there: the file gets its format and its name. Returns how many have a reason for no label."""
        with replacing(self.path) as temporary:
            {".csv": self._as_csv, ".jsonl": self._as_jsonl, ".parquet": self._as_parquet}[self.path.suffix](temporary)
        missing = sum("reason" in row for row in self._rows())
        self._partial.unlink()
        return missing

    def _rows(self) -> Iterator[dict[str, Any]]:
        with open(self._partial, encoding="utf-8") as file:
            next(file)
            yield from map(json.loads, file)

    def _as_jsonl(self, path: Path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            for row in self._rows():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _as_csv(self, path: Path) -> None:
        present = dict.fromkeys(key for row in self._rows() for key in _flat(row))
        columns = sorted(present, key=lambda name: name == "reason")  # which is rare, so the last
        with open(path, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(columns)
            for row in map(_flat, self._rows()):
                table.writerow([csv_cell(row.get(column, "")) for column in columns])

    def _as_parquet(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        top = pa.list_(pa.struct([("label", pa.string()), ("probability", pa.float64())]))
        types = {"file": pa.string(), "label": pa.string(), "probability": pa.float64(), "reason": pa.string()}
        types |= {"explanation": pa.string()}
        types |= {"top": top, "embedding": pa.list_(pa.float32())}
        present = {key for row in self._rows() for key in row}
        schema = pa.schema([(name, kind) for name, kind in types.items() if name in present])
        with pq.ParquetWriter(path, schema) as writer:
            waiting: list[dict[str, Any]] = []
            for row in self._rows():
                waiting.append(row)
                if len(waiting) == _BATCH:
                    writer.write_table(pa.Table.from_pylist(waiting, schema))
                    waiting = []
            writer.write_table(pa.Table.from_pylist(waiting, schema))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """One cell a value: the second most probable class is in `label_2` and `probability_2`."""
    flat = {key: value for key, value in row.items() if key not in _LISTS}
    for place, other in enumerate(row.get("top", ())[1:], start=2):
        flat |= {f"{key}_{place}": value for key, value in other.items()}
    return flat
