"""What a notebook shows of a model."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtrain.files import from_here

_FACTS = {
    "model": "{}",
    "dataset": "{}",
    "test_accuracy": "{:.2%}",
    "test_mAP": "{:.2%}",
    "val_accuracy": "{:.2%}",
    "val_mAP": "{:.2%}",
    "steps": "{:,}",
    "wall_seconds": "{:.1f} s",
    "params": "{:,}",
}
"""Keys of a run's summary, and how they are written."""


def model_html(kind: str, summary: Mapping[str, Any], run_dir: Path | None) -> str:
    """A table of what is known of a model, and the learning curves of its run where there is a picture of them."""
    facts = {name.replace("_", " "): form.format(summary[name]) for name, form in _FACTS.items() if summary.get(name)}
    if run_dir is not None:
        facts["run directory"] = str(from_here(run_dir))
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in facts.items())
    picture = run_dir / "learning_curves.png" if run_dir is not None else None
    image = ""
    if picture is not None and picture.is_file():
        data = base64.b64encode(picture.read_bytes()).decode()
        image = f'<img alt="learning curves" width="600" src="data:image/png;base64,{data}">'
    return f"<b>{html.escape(kind)}</b>{'' if summary else ', not fitted'}<table>{rows}</table>{image}"
