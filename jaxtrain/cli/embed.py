"""`jaxtrain embed`: the embedding store filled, and what it holds, as tables or as JSON."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from jaxtrain.cli.command import Command, Group, Positional
from jaxtrain.cli.train import Options
from jaxtrain.cli.workers import embedding_rows, workers_of
from jaxtrain.config import NonNegative, WorkersConfig
from jaxtrain.errors import RunError, UserError
from jaxtrain.screen.console import print_line, show_table
from jaxtrain.screen.program import command

if TYPE_CHECKING:
    from jaxtrain.cluster.pool import Workers
    from jaxtrain.embeddings.admin import Entry
    from jaxtrain.embeddings.store import Embeddings


class _OnStore(Command):
    store: Path = Path("runs/embeddings")
    """Folder of the embedding store."""
    as_json: Annotated[bool, Field(alias="json")] = False
    """Print JSON."""

    def _entries(self, keys: Sequence[str] = ()) -> list[Entry]:
        """Those of the keys, all where none is given."""
        from jaxtrain.embeddings.admin import entries, matching

        found = entries(self.store)
        return matching(found, keys) if keys else found


class Compute(Options):
    """Embed the images that a run of feature extraction learns from, before it asks for them.

    Options are those of `train --technique fe`: such a run finds what is here. The same command goes on where it was
    stopped; with --cluster.address the machines of a cluster compute, to the same bits.
    """

    important = (
        "data.name",
        "data.image_size",
        "model.name",
        "model.weights",
        "features.store",
        "features.batch_size",
        "cluster.address",
        "cluster.workers",
        "cluster.resources",
    )
    examples = (
        "embed compute --data.name folder:photos",
        "embed compute --config fe/digits --cluster.address auto --cluster.resources gpu=1,cpu=8",
    )

    technique: Literal["fe"] = "fe"
    """Feature extraction."""
    cluster: WorkersConfig = WorkersConfig()
    as_json: Annotated[bool, Field(alias="json")] = False
    """Print JSON."""

    def run(self) -> None:
        """Compute what the store lacks, and print what there is of each split."""
        with workers_of(self.cluster) as workers:
            self._embed(workers)

    def _embed(self, workers: Workers | None) -> None:
        from jaxtrain.classifiers.embedding import open_embedding

        embedding = open_embedding(self.options.replace(quiet=True) if self.as_json else self.options)
        with embedding_rows(workers, embedding) as rows:
            found = dict(embedding.splits(rows))
        if self.as_json:
            _print_json({name: _of_split(split) for name, split in found.items()})
        elif not self.quiet:
            for name, split in found.items():
                print_line(
                    f"{name}: {len(split):,} vectors of {split.dim} numbers ({split.computed:,} computed now), "
                    f"sha256 {split.files.digest()[:12]}, key {split.path.name[:12]}"
                )


class List(_OnStore):
    """Show what is there, the last used first."""

    def run(self) -> None:
        """Print it; as JSON with the whole key of each."""
        found = self._entries()
        if self.as_json:
            _print_json([_described(entry) for entry in found])
        elif found:
            _show(found)
            print_line(f"{len(found)} splits, {_size(sum(entry.bytes for entry in found))} in {self.store}")
        else:
            print_line(f"no embeddings in {self.store}")


class Verify(_OnStore):
    """Read every byte and compare it with its digest; exit code 1 where something is damaged."""

    keys: Annotated[tuple[str, ...], Positional("KEY")] = ()
    """First digits of the keys to look at (default: all)."""

    def run(self) -> None:
        """Print what was found; RunError where something is damaged."""
        from jaxtrain.embeddings.admin import verify

        chosen = self._entries(self.keys)
        problems = {entry.digest: verify(entry) for entry in chosen}
        if self.as_json:
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
                f"mends it, and {shlex.join(command('embed', 'prune', 'KEY'))} deletes it"
            )


class Export(_OnStore):
    """Write the embeddings of one split to a file."""

    key: Annotated[str, Positional("KEY")]
    """First digits of the key, as `list` shows it."""
    out: Path
    """The file: NAME.npz or NAME.parquet."""
    labels: Path | None = None
    """A .npy file with one integer for each image, to be written beside the vectors."""

    def run(self) -> None:
        """Write it and say so."""
        from jaxtrain.embeddings.admin import export

        (entry,) = self._entries([self.key])
        export(entry, self.out, None if self.labels is None else _read_labels(self.labels))
        assert entry.meta is not None
        if self.as_json:
            _print_json({"file": str(self.out), "images": entry.meta.images, "dim": entry.meta.dim})
        else:
            print_line(f"{self.out}: {entry.meta.images:,} vectors of {entry.meta.dim} numbers")


class Prune(_OnStore):
    """Delete embeddings that are old, too many or named. Without --yes: only show what would go."""

    unused_days: NonNegative | None = None
    """Those that no run has used for this many days."""
    max_gb: NonNegative | None = None
    """The longest unused, until the others take at most this many GB (10^9 bytes)."""
    keys: Annotated[tuple[str, ...], Positional("KEY")] = ()
    """First digits of the keys to delete; with a limit, only these are looked at."""
    yes: bool = False
    """Do it."""

    def run(self) -> None:
        """Delete, or show what would go."""
        from jaxtrain.embeddings.admin import prunable, remove

        limited = self.unused_days is not None or self.max_gb is not None
        if not self.keys and not limited:
            raise UserError("nothing to prune by: give --unused-days, --max-gb or keys")
        chosen = self._entries(self.keys)
        if limited:
            max_bytes = None if self.max_gb is None else int(self.max_gb * 1e9)
            chosen = prunable(chosen, unused_days=self.unused_days, max_bytes=max_bytes)
        gone = [entry for entry in chosen if remove(entry)] if self.yes else []
        if self.as_json:
            _print_json({"chosen": [entry.digest for entry in chosen], "removed": [entry.digest for entry in gone]})
            return
        _show(chosen)
        freed = _size(sum(entry.bytes for entry in (gone if self.yes else chosen)))
        if not self.yes:
            print_line(f"{len(chosen)} would go ({freed}); add --yes to delete" if chosen else "nothing would go")
            return
        kept = len(chosen) - len(gone)
        print_line(f"{len(gone)} deleted ({freed})" + (f"; {kept} are in use and stay" if kept else ""))


EMBED = Group(
    "Compute, list, verify, export or prune the embeddings that runs share.",
    {"list": List, "compute": Compute, "verify": Verify, "export": Export, "prune": Prune},
)


def _of_split(split: Embeddings) -> dict[str, Any]:
    figures = {"images": len(split), "dim": split.dim, "computed": split.computed, "seconds": round(split.seconds, 3)}
    return {"key": split.path.name, **figures, "sha256": split.files.digest(), "folder": str(split.path)}


def _read_labels(path: Path) -> Any:
    from jaxtrain.archives import read_npy

    try:
        return read_npy(path, "array of numbers in a .npy file", "write one with numpy.save")
    except FileNotFoundError as error:
        raise UserError(f"--labels {path}: {error.strerror}") from None


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
