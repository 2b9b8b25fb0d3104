"""`jaxtrain plan`: what a run would take on accelerators that are not here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from jaxtrain.cli.command import Positional
from jaxtrain.cli.train import Options


class Plan(Options):
    """Say what a run would take on TPUs or GPUs: whether it fits, how long it would be, what the host must deliver.

    The very step of the run is compiled for chips that need not be here (extra: tpu or cuda). Options are those of
    `train`; memory is the compiler's own figure, and so is time on TPUs. On GPUs it is a bound: what the products or
    the bytes take at the chip's peak. With `--technique fe` it is what embedding takes, and predicting: images per
    second, the cores that must decode for them, and the bytes of the embeddings.
    """

    recipe: Annotated[Path | None, Positional("RECIPE")] = None
    """A recipe or YAML file, as for --config."""
    target: str = Field(alias="for")
    """Chips, as `v5e-16`, `v5e:4x4`, `v4-8` (counted as Google does), `v5p-8`, `v6e-4`; `h100`, `a100-8`, `h200-16`
    (hosts of eight)."""
    all: bool = False
    """Plan every recipe in place of one, as it is and with strategy jit, in one table."""
    images: int | None = Field(None, gt=0)
    """Training images of a data set that is not here."""
    classes: int | None = Field(None, gt=1)
    """Its classes."""
    largest: bool = True
    """Look for the largest batch that fits, too; this compiles several times more."""
    json_file: Path | None = None
    """Write the figures here."""

    @model_validator(mode="after")
    def _what_goes_together(self) -> Plan:
        if (self.images is None) != (self.classes is None):
            raise ValueError("--images and --classes go together")
        others = self.model_fields_set - {"technique", "target", "all", "json_file", "quiet"}
        if self.all and others:
            raise ValueError(f"--all plans the recipes as they are: leave out {sorted(others)[0]}")
        return self

    @classmethod
    def below(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """As for `train`, with the recipe as its config."""
        if given.get("all"):
            return {"technique": "pt"}  # of no recipe: each has its own
        return super().below({"config": given.get("recipe"), **given})

    def run(self) -> None:
        """Compile, and print a table. Raises UserError for chips that there are not."""
        from jaxtrain.classifiers.planning import Size
        from jaxtrain.cli.forecast import show, show_recipes

        if self.all:
            show_recipes(self.target, quiet=self.quiet, json_file=self.json_file)
            return
        size = None if self.images is None or self.classes is None else Size(self.images, self.classes)
        show(self.options, self.target, size, option="--for", largest=self.largest, json_file=self.json_file)
