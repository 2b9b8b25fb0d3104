"""An audit as one page, in the style of the Benchmark's report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxtrain.evaluation.audit import NEIGHBOURS, Audit, Finding, Place
from jaxtrain.evaluation.gallery import thumbnail
from jaxtrain.evaluation.page import Cell, Tile, render_template
from jaxtrain.files import optional, write_csv, write_text

_TILES = 48
"""Of a kind; the others are in the table beside the page."""
_ROWS = 20


def write_audit(audit: Audit, folder: Path) -> Path:
    """`audit.html` and `suggestions.csv` in a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "suggestions.csv", audit.rows() or [{"issue": ""}])
    with optional(str(folder / "audit.html")):
        write_text(folder / "audit.html", render(audit))
    return folder


def render(audit: Audit) -> str:
    """The page."""
    return render_template("audit.html.j2", _context(audit))


def _context(audit: Audit) -> dict[str, Any]:
    near = audit.near_duplicates
    found = {"labels": audit.label_errors, "near": near or [], "outliers": audit.outliers}
    texts = {name: _some(findings) for name, findings in found.items()}
    if near is None:
        texts["near"] = "There are too many images to look for near duplicates."
    names = audit.class_names
    rows = [
        [
            Cell(names[pair.label], "", "name"),
            Cell(names[pair.looks_like], "", "name"),
            Cell(f"{pair.images:,}"),
            Cell(f"{100 * pair.share:.1f}%"),
        ]
        for pair in audit.overlaps[:_ROWS]
    ]
    return {
        "title": audit.name,
        "facts": _facts(audit),
        "texts": texts,
        "labels": [_tile(audit, one.place, _suggested(audit, one)) for one in audit.label_errors[:_TILES]],
        "overlaps": (["label", "counts for", "images", "share"], rows),
        "near": list(_pairs(audit, (near or [])[:_TILES])),
        "outliers": [_tile(audit, one.place, f"distance {one.score:.2f}") for one in audit.outliers[:_TILES]],
        "unreadable": [f"{name}: {reason}" for name, reason in audit.unreadable.items()],
        "method": audit.method,
        "neighbours": NEIGHBOURS,
    }


def _facts(audit: Audit) -> list[tuple[str, str]]:
    images = ", ".join(f"{len(source):,} {name}" for name, source in audit.splits.items())
    return [
        ("images", f"{images}; {len(audit.class_names):,} classes"),
        ("labels judged", f"{audit.judged:,}"),
        ("agree with the head", f"{100 * audit.accuracy:.1f}%"),
        ("likely label errors", f"{len(audit.label_errors):,}"),
        ("jaxtrain", version("jaxtrain")),
    ]


def _some(findings: Sequence[Finding]) -> str:
    if len(findings) > _TILES:
        return f"{len(findings):,} were found, of which the first {_TILES} are shown; all are in suggestions.csv."
    return f"{len(findings):,} found." if findings else "None found."


def _suggested(audit: Audit, one: Finding) -> str:
    assert one.suggested is not None
    return f"looks like {audit.class_names[one.suggested]} ({one.score:+.2f})"


def _pairs(audit: Audit, findings: Sequence[Finding]) -> Iterator[tuple[Tile, Tile]]:
    for one in findings:
        assert one.other is not None
        text = "same label" if audit.label(one.place) == audit.label(one.other) else "labels differ"
        yield _tile(audit, one.place, text), _tile(audit, one.other, text)


def _tile(audit: Audit, place: Place, text: str) -> Tile:
    source = thumbnail(audit.splits[place.split], place.number)
    return Tile(source, f"{audit.label(place)} · {place.split} {place.number}", [(text, "", None)])
