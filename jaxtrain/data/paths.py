"""Paths that people give."""

from __future__ import annotations

from pathlib import Path

from jaxtrain.errors import UserError, nearest


def existing(text: str, scheme: str) -> Path:
    """The path of `SCHEME:PATH`; raises `UserError` with the nearest name where it does not exist."""
    path = Path(text.removeprefix("file://")).expanduser()
    if path.exists():
        return path
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    siblings = _names(missing.parent)
    hint = nearest(missing.name, siblings) if siblings else f"{missing.parent} is empty"
    raise UserError(f"{scheme}:{text} does not exist: there is no '{missing.name}' in {missing.parent}: {hint}")


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return []
