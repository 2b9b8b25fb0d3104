"""What the journal holds as MLflow takes it: points of metrics, names and texts of allowed length."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxtrain.readers import open_file
from jaxtrain.tracking.journal import complete_lines, decode_record
from jaxtrain.tracking.outbox import JOURNAL

LONGEST_NAME = 250


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


def unsent_rows(run_dir: Path, acknowledged: Mapping[str, int]) -> int:
    """Records of the journal of which MLflow is not known to have every point."""
    path = run_dir / JOURNAL
    if not path.exists():
        return 0
    with open_file(path) as file:
        records = [decode_record(line) for line in complete_lines(file)]
    points = [finite_points(record) for record in records if record]
    return sum(any(point.step > acknowledged.get(point.key, -1) for point in each) for each in points)


def safe_name(name: str) -> str:
    """A name that MLflow takes for metrics, parameters, tags: `%` becomes `pct`, other characters `_`."""
    name = re.sub(r"[^\w.\- :/]", "_", name.replace("%", "pct"))
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:LONGEST_NAME] or "_"


def cut(text: str, longest: int) -> str:
    """The text, ending in an ellipsis where it is longer than MLflow keeps."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def finite_points(record: Mapping[str, Any]) -> Iterator[Point]:
    """The points of a record that MLflow can hold: it stores infinity as 1.8e308, NaN as 0 with a mark."""
    for key, value in record.items():
        if key not in ("step", "time") and math.isfinite(value):
            yield Point(safe_name(key), value, time_ms(record), record["step"])


def time_ms(record: Mapping[str, Any]) -> int:
    """When a record was written, in milliseconds since 1970."""
    time = record.get("time", 0.0) * 1000
    return int(time) if 0 <= time < 2**53 else 0
