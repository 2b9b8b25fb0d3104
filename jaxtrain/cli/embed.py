"""The commands of scripts/embed.py: what the embedding store holds, as tables or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from jaxtrain.cli.main import parse
from jaxtrain.embeddings.admin import Entry, entries, export, matching, prunable, remove, verify
from jaxtrain.embeddings.store import DEFAULT_ROOT
from jaxtrain.errors import RunError, UserError
from jaxtrain.screen.console import print_line, show_table

_FLAGS = (FlagCreatePairsOff,)
_Key = Annotated[str, arg(metavar="KEY")]


@dataclass(frozen=True)
class List:
    """Show what is there, the last used first."""

    store: Path = DEFAULT_ROOT
    """Folder of the embedding store."""
    json: bool = False
    """Print JSON, with the whole key of each."""

    def run(self) -> None:
        """Print it."""
        found = entries(self.store)
        if self.json:
            _print_json([_described(entry) for entry in found])
        elif found:
            _show(found)
            print_line(f"{len(found)} splits, {_size(sum(entry.bytes for entry in found))} in {self.store}")
        else:
            print_line(f"no embeddings in {self.store}")


@dataclass(frozen=True)
class Verify:
    """Read every byte and compare it with its digest; exit code 1 where something is damaged."""

    keys: Positional[tuple[_Key, ...]] = ()
    """First digits of the keys to look at (default: all)."""
    store: Path = DEFAULT_ROOT
    """Folder of the embedding store."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Print what was found; RunError where something is damaged."""
        found = entries(self.store)
        chosen = matching(found, self.keys) if self.keys else found
        problems = {entry.digest: verify(entry) for entry in chosen}
        if self.json:
            _print_json({entry.digest: {**_state(entry), "problems": problems[entry.digest]} for entry in chosen})
        else:
            for entry in chosen:
                lines = problems[entry.digest] or ["sound" if entry.complete else f"sound so far, {_shards(entry)}"]
                for line in lines:
                    print_line(f"{entry.digest[:12]}  {line}")
        damaged = [digest[:12] for digest, lines in problems.items() if lines]
        if damaged:
            raise RunError(
                f"{len(damaged)} of {len(chosen)} damaged: {', '.join(damaged[:5])}; the next run that needs one "
                "mends it, and `embed.py prune KEY` deletes it"
            )


@dataclass(frozen=True)
class Export:
    """Write the embeddings of one split to a file."""

    key: Positional[_Key]
    """First digits of the key, as `list` shows it."""
    out: Path
    """The file: NAME.npz or NAME.parquet."""
    labels: Path | None = None
    """A .npy file with one integer for each image, to be written beside the vectors."""
    store: Path = DEFAULT_ROOT
    """Folder of the embedding store."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Write it and say so."""
        (entry,) = matching(entries(self.store), [self.key])
        export(entry, self.out, None if self.labels is None else _read_labels(self.labels))
        assert entry.meta is not None
        if self.json:
            _print_json({"file": str(self.out), "images": entry.meta.images, "dim": entry.meta.dim})
        else:
            print_line(f"{self.out}: {entry.meta.images:,} vectors of {entry.meta.dim} numbers")


@dataclass(frozen=True)
class Prune:
    """Delete embeddings that are old, too many or named. Without --yes: only show what would go."""

    unused_days: float | None = None
    """Those that no run has used for so many days."""
    max_gb: float | None = None
    """The longest unused, until the others take no more than so many GB (10^9 bytes)."""
    keys: Positional[tuple[_Key, ...]] = ()
    """First digits of the keys to delete; with a limit, only these are looked at."""
    yes: bool = False
    """Do it."""
    store: Path = DEFAULT_ROOT
    """Folder of the embedding store."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Delete, or show what would go."""
        limits = {"unused_days": self.unused_days, "max_gb": self.max_gb}
        for name, limit in limits.items():
            if limit is not None and not limit >= 0:
                raise UserError(f"--{name.replace('_', '-')}: {limit} is no number of at least 0")
        if not self.keys and set(limits.values()) == {None}:
            raise UserError("nothing to prune by: give --unused-days, --max-gb or keys")
        chosen = entries(self.store)
        if self.keys:
            chosen = matching(chosen, self.keys)
        if set(limits.values()) != {None}:
            max_bytes = None if self.max_gb is None else int(self.max_gb * 1e9)
            chosen = prunable(chosen, unused_days=self.unused_days, max_bytes=max_bytes)
        gone = [entry for entry in chosen if remove(entry)] if self.yes else []
        if self.json:
            _print_json({"chosen": [entry.digest for entry in chosen], "removed": [entry.digest for entry in gone]})
            return
        _show(chosen)
        freed = _size(sum(entry.bytes for entry in (gone if self.yes else chosen)))
        if not self.yes:
            print_line(f"{len(chosen)} would go ({freed}); add --yes to delete" if chosen else "nothing would go")
            return
        kept = len(chosen) - len(gone)
        print_line(f"{len(gone)} deleted ({freed})" + (f"; {kept} are in use and stay" if kept else ""))


def run(arguments: Sequence[str]) -> None:
    """The command that a command line asks for. Raises UserError for a wrong one."""
    parse(List | Verify | Export | Prune, arguments, description="Embeddings that runs share.", config=_FLAGS).run()


def _read_labels(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--labels {path}: no array of numbers in a .npy file: {error}") from error


def _show(found: Sequence[Entry]) -> None:
    show_table([_row(entry) for entry in found], right={"images", "dim", "size"})


def _row(entry: Entry) -> Mapping[str, str]:
    key = entry.meta.key if entry.meta else None
    view = f" view {key.view}" if key and key.view else ""
    return {
        "key": entry.digest[:12],
        "model": key.model + view if key else "?",
        "pixels": f"{key.image_size}" if key else "?",
        "images": f"{entry.meta.images:,}" if entry.meta else "?",
        "dim": f"{entry.meta.dim}" if entry.meta else "?",
        "size": _size(entry.bytes),
        "used": time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
        "state": "complete" if entry.complete else entry.problem or _shards(entry),
    }


def _described(entry: Entry) -> dict[str, Any]:
    meta = entry.meta.model_dump(mode="json") if entry.meta else {}
    return {"digest": entry.digest, "folder": str(entry.folder), **_state(entry), **meta}


def _state(entry: Entry) -> dict[str, Any]:
    times = {
        name: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(value))
        for name, value in (("created", entry.created), ("used", entry.used))
    }
    shards = {"shards_present": entry.shards, "complete": entry.complete}
    return {**shards, "bytes": entry.bytes, **times, "problem": entry.problem}


def _shards(entry: Entry) -> str:
    return f"{entry.shards} of {entry.meta.shards if entry.meta else '?'} shards"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
