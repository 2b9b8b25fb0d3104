"""`jaxtrain plan`: what a run would take on accelerators that are not here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from jaxtrain.cli.command import Positional
from jaxtrain.cli.train import Options

if TYPE_CHECKING:
    from jaxtrain.classifiers.planning import Forecast, Way


class Plan(Options):
    """Say what a run would take on TPUs: whether it fits, how long it would be, what the host must deliver.

    The very step of the run is compiled by the TPU compiler, which needs no TPU (extra: tpu). Options are those of
    `train`; memory and cycles are the compiler's own figures.
    """

    recipe: Annotated[Path | None, Positional("RECIPE")] = None
    """A recipe or YAML file, as for --config."""
    target: str = Field(alias="for")
    """Chips, as `v5e-16`, `v5e:4x4`, `v4-8` (counted as Google does), `v5p-8`, `v6e-4`."""
    images: int | None = Field(None, gt=0)
    """Training images of a data set that is not here."""
    classes: int | None = Field(None, gt=1)
    """Its classes."""
    largest: bool = True
    """Look for the largest batch that fits, too; this compiles several times more."""
    json_file: Path | None = None
    """Write the figures here."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Plan:
        if (self.images is None) != (self.classes is None):
            raise ValueError("--images and --classes go together")
        return self

    @classmethod
    def below(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """As for `train`, with the recipe as its config."""
        return super().below({"config": given.get("recipe"), **given})

    def run(self) -> None:
        """Compile, and print a table. Raises UserError for chips that there are not."""
        import json

        from jaxtrain.classifiers.files import TECHNIQUES
        from jaxtrain.classifiers.planning import Size, plan
        from jaxtrain.files import write_text
        from jaxtrain.screen.console import print_line, show_table
        from jaxtrain.training.chips import target

        chips = target(self.target)
        config = self.options
        size = None if self.images is None or self.classes is None else Size(self.images, self.classes)
        say = (lambda text: None) if config.quiet else print_line
        forecast = plan(TECHNIQUES[config.technique](config), chips, size, largest=self.largest, say=say)
        title = f"{config.technique.upper()}: {forecast.config.model.label} on {self.target}"
        print_line(f"{title} ({chips.kind}:{chips.shape}), {forecast.config.model.dtype}")
        rows = [dict(_row(forecast, way)) for way in forecast.ways]
        show_table([{"": name} | {row["strategy"]: row[name] for row in rows} for name in rows[0]][1:])
        if self.json_file:
            write_text(self.json_file, json.dumps([_figures(forecast, way) for way in forecast.ways], indent=2))


def _row(forecast: Forecast, way: Way) -> Iterator[tuple[str, str]]:
    from jaxtrain.classifiers.planning import cores_needed

    gib = forecast.target.chip.gibibytes
    yield "strategy", way.strategy
    fits = "yes" if forecast.fits(way) else "no"
    if way.compiled is None:
        yield "fits", "no: more than the compiler can place"
        return
    yield "fits", f"{fits}: {way.needs / 2**30:.2f} of {gib:g} GiB a chip"
    yield "parameters", _mib(way.parameters)
    yield "optimizer, statistics", _mib(way.optimizer)
    yield "activations", _mib(way.compiled.temporary)
    yield "training images", "on the chips" if forecast.config.data.loader == "device" else "streamed"
    yield "batch", f"{way.batch:,}" + (f" (largest that fits: about {way.largest:,})" if way.largest else "")
    seconds, source = forecast.seconds(way)
    yield "step", f"{1000 * seconds:.2f} ms ({source})"
    yield "utilisation", f"{forecast.utilisation(way):.0%} of {forecast.target.chip.tflops:g} TFLOP/s"
    devices = forecast.target.chips
    yield "FLOPs an image", f"{way.compiled.flops * devices / way.batch / 1e9:.3g} G"
    moved = [f"{count} {kind} ({size / 2**20:.3g} MiB)" for kind, (count, size) in way.compiled.collectives.items()]
    yield "collectives", ", ".join(moved) or "none"
    rate = way.batch / seconds
    cores = cores_needed(forecast, rate)
    yield "images", f"{rate:,.0f}/s" + (f": {cores} must decode" if cores else "")
    yield "whole run", f"{forecast.steps:,} steps, {_duration(forecast.steps * seconds)}"


def _figures(forecast: Forecast, way: Way) -> dict[str, Any]:
    found = {"strategy": way.strategy, "batch": way.batch, "largest": way.largest, "fits": forecast.fits(way)}
    found |= {"parameter_bytes": way.parameters, "optimizer_bytes": way.optimizer}
    if way.compiled is None:
        return found
    each = way.compiled
    found |= {"memory_bytes": each.memory, "temporary_bytes": each.temporary, "flops": each.flops}
    found |= {"bytes_touched": each.touched, "cycles": each.cycles, "collectives": each.collectives}
    return found | {"step_seconds": forecast.seconds(way)[0], "steps": forecast.steps}


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB a chip"


def _duration(seconds: float) -> str:
    hours, minutes = seconds / 3600, seconds / 60
    return f"{hours:.2f} hours" if hours >= 1 else f"{minutes:.1f} minutes" if minutes >= 1 else f"{seconds:.1f} s"
