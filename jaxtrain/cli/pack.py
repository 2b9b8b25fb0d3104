"""`jaxtrain pack`: any data set as tar shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from jaxtrain.cli.command import Command, Positional
from jaxtrain.config import ColumnsConfig, Count


class Pack(Command):
    """Write a data set into tar shards, which train as wds:FOLDER: few large files instead of many small ones.

    The splits are those of the data set; what a run would hold out of the training set stays in it. A file pack.json
    beside the shards names the classes and the SHA-256 of each.
    """

    name: Annotated[str, Positional("NAME")]
    """The data set, as data.name: folder:PATH, csv:FILE, ..."""
    folder: Annotated[Path, Positional("FOLDER")]
    """A new folder for the shards."""
    size: Count | None = None
    """Reduce larger images to this shorter side, as PNG (default: every file as it is)."""
    shard_mb: Count = 256
    """MB in a shard, about."""
    dir: Path | None = None
    """As data.dir."""
    layout: Literal["auto", "classes"] = "auto"
    """As data.layout."""
    columns: ColumnsConfig = ColumnsConfig()
    max_bad_images: Annotated[int, Field(ge=0)] = 0
    """Unreadable images that may be left out (named) before the command stops."""

    def run(self) -> None:
        """Write, and print the name of what was written."""
        from jaxtrain.config import DataConfig
        from jaxtrain.data.packing import pack
        from jaxtrain.screen.console import print_line

        options = self.model_dump(include={"name", "dir", "layout", "columns", "max_bad_images"})
        print_line(pack(DataConfig(**options), self.folder, size=self.size, megabytes=self.shard_mb))
