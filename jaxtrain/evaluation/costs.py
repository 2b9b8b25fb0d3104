"""What a model costs, under one protocol for every technique.

- On one device, compiled beforehand, after two calls that are not counted.
- The clock runs from images in host memory, at the model's size, to logits in host memory. Reading, decoding and
  resizing are told apart, for one thread.
- Latency: single images one after the other. Throughput: the batch size with the most images per second.
- Floating-point operations and memory are the compiler's own count for the program that is timed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import Config, chosen
from jaxtrain.data.base import ImageSource
from jaxtrain.data.decode import read_image
from jaxtrain.data.transforms import center_crop_resize
from jaxtrain.errors import DamagedError
from jaxtrain.files import optional, write_text
from jaxtrain.readers import read_json

BATCHES = (1, 8, 32, 128, 512)
CALLS = (20, 500)
"""Single images that are timed at least and at most; between, as many as fit into `SECONDS`."""
SECONDS = 2.0
_DECODED = 64
_SLOWER = 0.8
"""Larger batches are not tried where one is so much slower than the best."""

Costs = dict[str, float]


@dataclass(frozen=True)
class ForwardPass:
    """How a classifier comes from images to logits."""

    network: Callable[[Any, Any], Any]
    """Pure and traceable: (weights, `uint8[batch, size, size, channels]`) to `float32[batch, ...]`."""
    weights: Any
    """Tree of host arrays."""
    config: Config
    """Resolved."""
    head: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    """On the host, from what the network gives to `float32[batch, classes]`; None: it gives logits."""
    head_flops: float = 0.0
    """Operations of the head for one image."""


class Costed(Protocol):
    """What the costs are measured of."""

    def forward_pass(self) -> ForwardPass:
        """How predictions are computed."""


def measure_costs(classifier: Costed, source: ImageSource | None = None) -> Costs:
    """Costs of predicting, on this machine's first device.

    flops_per_image
        Floating-point operations; a multiplication and an addition count as two.
    latency_ms_p50, latency_ms_p95, latency_ms_p99
        Milliseconds for a single image.
    images_per_second, best_batch
        Of the fastest batch size.
    memory_mb
        Weights, inputs, outputs and temporary arrays at that batch size, in MB (10^6 bytes).
    decode_images_per_second
        Reading, decoding and resizing images of `source`, where it is given.
    """
    import jax

    forward = classifier.forward_pass()
    weights = jax.device_put(forward.weights, jax.local_devices()[0])
    network = jax.jit(forward.network)
    data = forward.config.data
    size, channels = chosen(data.image_size), chosen(data.channels)
    rng = np.random.default_rng(0)
    costs: Costs = {}
    for batch in BATCHES:
        images = rng.integers(0, 256, (batch, size, size, channels)).astype(data.pixel_type)
        compiled = network.lower(weights, images).compile()

        def call(compiled: Any = compiled, images: NDArray[np.uint8] = images) -> None:
            output = np.asarray(compiled(weights, images))
            if forward.head is not None:
                forward.head(output)

        if batch == 1:
            costs |= _single(call) | {"flops_per_image": _flops(compiled) + forward.head_flops}
        speed, best = batch / float(np.median(_times(call, 3, 100, SECONDS / 4))), costs.get("images_per_second", 0.0)
        if speed > best:
            costs |= {"images_per_second": speed, "best_batch": float(batch), "memory_mb": _memory(compiled)}
        elif speed < _SLOWER * best:
            break
    if source is not None:
        costs["decode_images_per_second"] = _decoding(forward.config, source)
    return costs


def costs_of_training(summary: Mapping[str, Any]) -> Costs:
    """What `summary.json` says: parameters, and what it took to train them.

    `train_seconds` are those of the clock, FE's with its embedding, and with those of the run whose weights it started
    from; `pretraining_unknown` is 1 where it is not known what these took. `images_seen` counts an image each time
    that it passed through the network in the run itself.
    """
    costs = {name: float(summary[name]) for name in ("params", "trainable_params") if name in summary}
    if "wall_seconds" in summary:
        before = _pretraining_seconds(summary)
        costs["train_seconds"] = float(summary["wall_seconds"]) + (before or 0.0)
        about = round(summary.get("images_per_second", 0.0) * summary["wall_seconds"])  # older summaries have no count
        costs["images_seen"] = float(summary.get("images_seen", about))
        if before is None:
            costs["pretraining_unknown"] = 1.0
    return costs


def training_seconds(weights: Path) -> float | None:
    """What it took to train the weights of a run (its directory or the model in it), all in all; None: not known."""
    for folder in (weights, weights.parent) if weights.name == "model" else (weights,):
        try:
            summary = read_json(folder / "summary.json", "summary of a run")
            before = _pretraining_seconds(summary)
            return None if before is None else float(summary["wall_seconds"]) + before
        except (OSError, DamagedError, ValueError, KeyError, TypeError):
            continue
    return None


def _pretraining_seconds(summary: Mapping[str, Any]) -> float | None:
    """Of the weights that a run started from: 0 where there were none; older summaries do not say."""
    known = summary.get("pretraining_seconds", None if summary.get("technique") in ("fe", "ft") else 0.0)
    return None if known is None else float(known)


def kept_costs(path: Path, key: str, measure: Callable[[], Costs]) -> Costs:
    """Costs from a JSON file, where they were measured for this key on this kind of device; else measured and kept."""
    import jax

    about = {"key": key, "device": jax.local_devices()[0].device_kind, "jax": jax.__version__}
    try:
        kept = read_json(path, "record of costs")
        if {name: kept[name] for name in about} == about:
            return {str(name): float(value) for name, value in kept["costs"].items()}
    except (OSError, DamagedError, ValueError, KeyError, TypeError, AttributeError):
        pass  # there are none, or not ours
    costs = measure()
    with optional(str(path)):  # a run of someone else's: measured again next time
        write_text(path, json.dumps({**about, "costs": costs}, indent=2) + "\n")
    return costs


def folder_megabytes(folder: Path) -> float:
    """Size of all files in MB (10^6 bytes)."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _single(call: Callable[[], None]) -> Costs:
    times = _times(call, *CALLS, seconds=SECONDS)
    return {f"latency_ms_p{q}": float(np.percentile(times, q)) * 1e3 for q in (50, 95, 99)}


def _times(call: Callable[[], None], least: int, most: int, seconds: float) -> list[float]:
    """Seconds of each call, after two that are not counted."""
    for _ in range(2):
        call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < least or (len(times) < most and time.perf_counter() < until):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times


def _flops(compiled: Any) -> float:
    return float((compiled.cost_analysis() or {}).get("flops", 0.0))


def _memory(compiled: Any) -> float:
    found = compiled.memory_analysis()
    if found is None:
        return 0.0
    sizes = (found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes)
    return float(sum(sizes)) / 1e6


def _decoding(config: Config, source: ImageSource) -> float:
    """Images per second, in one thread."""
    data = config.data

    def decode(place: int) -> None:
        image = read_image(source, place, channels=chosen(data.channels), max_pixels=data.max_pixels)
        center_crop_resize(image, chosen(data.image_size), chosen(data.crop_pct), chosen(data.interpolation))

    decode(0)  # imports the decoder
    places = np.unique(np.linspace(0, len(source) - 1, _DECODED).astype(int)).tolist()
    started = time.perf_counter()
    for place in places:
        decode(place)
    return len(places) / (time.perf_counter() - started)
