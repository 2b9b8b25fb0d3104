"""What `jaxtrain plan` and `train --plan` print."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtrain.classifiers.files import TECHNIQUES
from jaxtrain.classifiers.planning import Forecast, Size, Way, plan
from jaxtrain.config import Config
from jaxtrain.config_io import find_config, load_config, recipe_names
from jaxtrain.errors import UserError
from jaxtrain.files import write_text
from jaxtrain.screen.console import print_line, show_table
from jaxtrain.training.chips import target

_COLUMNS = ("recipe", "model", "batch", "fits", "step", "utilisation", "images", "to keep up", "whole run")


def show(config: Config, chips: str, size: Size | None, *, option: str, largest: bool, json_file: Path | None) -> None:
    """Compile a run for chips that `option` names, and print a table. Raises UserError for those that there are not."""
    where = target(chips, option)
    say = (lambda text: None) if config.quiet else print_line
    forecast = plan(TECHNIQUES[config.technique](config), where, size, largest=largest, say=say)
    title = f"{config.technique.upper()}: {forecast.config.model.label} on {chips}"
    print_line(f"{title} ({where.kind}:{where.shape}), {forecast.config.model.dtype}")
    rows = [dict(_row(forecast, way)) for way in forecast.ways]
    show_table([{"": name} | {row["strategy"]: row[name] for row in rows} for name in rows[0]][1:])
    if json_file:
        write_text(json_file, json.dumps([_figures(forecast, way) for way in forecast.ways], indent=2))


def show_recipes(chips: str, *, quiet: bool, json_file: Path | None) -> None:
    """Compile every recipe for these chips, and print a table; those that cannot be planned here say why."""
    where = target(chips)
    rows: list[dict[str, str]] = []
    found: list[dict[str, Any]] = []
    say = (lambda text: None) if quiet else print_line
    for name in recipe_names():
        if name.startswith("sweeps/"):
            continue
        if json_file and found:
            write_text(json_file, json.dumps(found, indent=2))  # a later one may take long
        config, begun = load_config(find_config(name)), time.monotonic()
        say(name)
        try:
            forecast = plan(TECHNIQUES[config.technique](config), where, strategies=("jit",), largest=False, say=say)
        except UserError as problem:
            say(str(problem))
            found.append({"recipe": name, "problem": str(problem)})
            continue
        way, about = forecast.ways[0], {"recipe": name, "model": forecast.config.model.label}
        row = {**about, **dict(_row(forecast, way))}
        rows.append({column: row.get(column, "") for column in _COLUMNS})
        found.append({**about, **_figures(forecast, way), "seconds": time.monotonic() - begun})
    show_table(rows)
    if json_file:
        write_text(json_file, json.dumps(found, indent=2))


def _row(forecast: Forecast, way: Way) -> Iterator[tuple[str, str]]:
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
    least, most = ("", "") if way.compiled.cycles else ("at least ", "at most ")
    yield "step", f"{least}{1000 * seconds:.2f} ms ({source})"
    yield "utilisation", f"{most}{forecast.utilisation(way):.0%} of {forecast.target.chip.tflops:g} TFLOP/s"
    yield "FLOPs an image", f"{forecast.flops / 1e9:.3g} G"
    moved = [f"{count} {kind} ({size / 2**20:.3g} MiB)" for kind, (count, size) in way.compiled.collectives.items()]
    yield "collectives", ", ".join(moved) or "none"
    rate, chips = forecast.rate(way), forecast.target.chips
    yield "images", f"{most}{rate:,.0f}/s" + (f", {rate / chips:,.0f}/s a chip" if chips > 1 else "")
    if decoding := forecast.decoding(way):
        cores = f"{decoding.cores:,} cores like the {os.cpu_count()} here ({forecast.decoded:,.0f} images/s each)"
        yield "to keep up", f"{cores} must decode: those of {decoding.hosts:,} such hosts"
    whole = f"{least}{_duration(forecast.steps * seconds)}"
    if (embedded := forecast.embedded) is None:
        yield "whole run", f"{forecast.steps:,} steps, {whole}"
        return
    yield "whole run", f"{embedded.images:,} images, {whole}"
    yield "embeddings", f"{embedded.bytes / 2**20:,.1f} MiB: {embedded.features:,} numbers an image"
    yield "prediction", f"{least}{_duration(1e6 / rate)} for a million images"


def _figures(forecast: Forecast, way: Way) -> dict[str, Any]:
    found = {"strategy": way.strategy, "batch": way.batch, "largest": way.largest, "fits": forecast.fits(way)}
    found |= {"parameter_bytes": way.parameters, "optimizer_bytes": way.optimizer}
    if way.compiled is None:
        return found
    each = way.compiled
    found |= {"memory_bytes": each.memory, "temporary_bytes": each.temporary, "flops": forecast.flops * way.batch}
    found |= {"bytes_touched": each.touched, "cycles": each.cycles, "collectives": each.collectives}
    found |= {"step_seconds": forecast.seconds(way)[0], "steps": forecast.steps}
    found |= {"images_per_second": forecast.rate(way)}
    if decoding := forecast.decoding(way):
        found |= {"decoding_cores": decoding.cores, "decoding_hosts": decoding.hosts}
    if embedded := forecast.embedded:
        found |= {"embedded_images": embedded.images, "embedding_bytes": embedded.bytes}
    return found


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB a chip"


def _duration(seconds: float) -> str:
    hours, minutes = seconds / 3600, seconds / 60
    short = f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
    return f"{hours:.2f} hours" if hours >= 1 else f"{minutes:.1f} minutes" if minutes >= 1 else short
