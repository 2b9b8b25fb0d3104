"""The README of a model that leaves: what it is, and how it did on its test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jaxtrain.errors import JaxtrainError
from jaxtrain.escape import markdown
from jaxtrain.evaluation.wording import METRICS, value
from jaxtrain.files import run_name
from jaxtrain.readers import read_json

_FIGURES = ("accuracy", "top5_accuracy", "balanced_accuracy", "mAP", "macro_f1", "loss", "brier", "ece")
_TRAINED = {"fe": "a head on frozen features", "ft": "fine-tuned", "pt": "trained from scratch"}
_MOST_NAMES = 100


def model_card(run: Path, *, model: str, address: str, class_names: Sequence[str], size: int) -> str:
    """Markdown, as model hubs show it. `address` is what timm.create_model takes; `size` that of images, in pixels.

    Figures are those that the Benchmark has kept in the run directory, with their intervals; a folder that was written
    by `save` has none.
    """
    summary, measured = _read(run / "summary.json"), _read(run / "benchmark" / "metrics.json")
    if measured.get("params_sha256") != summary.get("params_sha256"):
        measured = {}
    figures = [name for name in _FIGURES if isinstance(measured.get(f"test/{name}"), int | float)]
    about: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "jaxtrain"],
    }
    title = f"{model}, {run_name(str(summary['dataset']))}" if "dataset" in summary else model
    if figures:
        about["model-index"] = [{"name": title, "results": [_result(measured, figures)]}]
    trained = _TRAINED.get(str(summary.get("technique")), "trained")
    names = ", ".join(markdown(name) for name in class_names[:_MOST_NAMES])
    more = f" and {len(class_names) - _MOST_NAMES:,} more" if len(class_names) > _MOST_NAMES else ""
    parts = [
        f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---",
        f"# {markdown(title)}",
        f"{markdown(model)}, {trained} with jaxtrain, for images of {size} x {size} pixels "
        "(`config.json` says how they are prepared).",
        f"{len(class_names):,} classes: {names}{more}.",
        _table(measured, figures) if figures else "It was not measured on a test set.",
        f'```python\nimport timm\n\nmodel = timm.create_model("{address}", pretrained=True).eval()\n```',
    ]
    return "\n\n".join(parts) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, "record of a run")
    except (OSError, JaxtrainError):
        return {}


def _result(measured: Mapping[str, Any], figures: Sequence[str]) -> dict[str, Any]:
    dataset = run_name(str(measured["dataset"]))
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": dataset, "type": dataset, "split": "test"},
        "metrics": [{"type": name, "value": measured[f"test/{name}"], "name": METRICS[name]} for name in figures],
    }


def _table(measured: Mapping[str, Any], figures: Sequence[str]) -> str:
    rows = ["| on the test set | | 95% interval |", "|---|---|---|"]
    for name in figures:
        ends = [measured.get(f"test/{name}_{end}") for end in ("low", "high")]
        interval = "" if None in ends else " to ".join(value(name, end) for end in ends)
        rows.append(f"| {METRICS[name]} | {value(name, measured[f'test/{name}'])} | {interval} |")
    looks = measured.get("test/looks")
    seen = "" if looks is None else f" {int(looks):,} models were measured on it so far."
    test = f"Test set: {int(measured['images']):,} images of {markdown(run_name(str(measured['dataset'])))}"
    return "\n".join(rows) + f"\n\n{test} (digest `{str(measured['test_digest'])[:12]}`).{seen}"
