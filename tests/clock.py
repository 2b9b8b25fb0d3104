"""Records of the journal apart from what a clock decides."""

from collections.abc import Mapping
from typing import Any


def without_clock(record: Mapping[str, Any]) -> dict[str, Any]:
    measured = ("time", "images_per_second")
    return {name: value for name, value in record.items() if name not in measured and not name.startswith("perf/")}
