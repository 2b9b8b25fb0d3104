"""`jaxtrain predict` of JPEGs against the bare forward pass: the same decoder in a pool, one jitted function.

    python scripts/bench_predict.py [--model NAME] [--images N] [--rounds N] [--json FILE]

JPEGs of 500x375, resized and cropped to 224 pixels. Rounds are interleaved, so that a busy machine slows both alike;
both load and compile the model, start their workers, and are timed as a whole; medians. Ours also lists the folder and
writes a table.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
from bench_input import SIZE, make_images

import jaxtrain
from jaxtrain.cli.main import run
from jaxtrain.data.base import Images
from jaxtrain.data.decode import pixels_of
from jaxtrain.data.transforms import center_crop_resize

BATCH = 64


def decoded(path: Path) -> Images:
    """One image as the network has it."""
    return center_crop_resize(pixels_of(path.read_bytes(), channels=3, max_pixels=1 << 28), SIZE, 0.875, "bicubic")


def bare(run_dir: Path, paths: list[Path]) -> list[int]:
    """Predicted classes."""
    import jax

    passed = jaxtrain.load(run_dir).fitted.predictor.forward_pass()
    weights, network = jax.device_put(passed.weights), jax.jit(passed.network)
    classes: list[int] = []
    with get_context("forkserver").Pool(os.cpu_count()) as pool:
        images = pool.imap(decoded, paths, chunksize=16)
        waiting = []
        for start in range(0, len(paths), BATCH):
            batch = np.stack([next(images) for _ in paths[start : start + BATCH]])
            waiting.append(network(weights, np.pad(batch, ((0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))))
            if len(waiting) > 2:
                classes += np.asarray(waiting.pop(0)).argmax(axis=1).tolist()
        for logits in waiting:
            classes += np.asarray(logits).argmax(axis=1).tolist()
    return classes[: len(paths)]


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet_tiny")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        make_images(folder / "images", arguments.images)
        few = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
        options = {"model": {"name": arguments.model}, "train": {"steps": 1, "batch_size": 2}, "quiet": True}
        data = {"crop_pct": 0.875, "interpolation": "bicubic"}
        jaxtrain.PTClassifier(run_dir=folder / "run", data=data, tracking={"enabled": False}, **options).fit(
            few, [0, 1, 0, 1]
        )
        paths, out = sorted((folder / "images").iterdir()), folder / "out.csv"
        words = ["predict", str(folder / "run"), str(folder / "images"), "--out", str(out)]
        rates: dict[str, list[float]] = {"bare": [], "jaxtrain": []}
        for number in range(arguments.rounds):
            ways = {"bare": partial(bare, folder / "run", paths), "jaxtrain": partial(run, words)}
            for title in sorted(ways, reverse=bool(number % 2)):
                out.unlink(missing_ok=True)
                start = time.perf_counter()
                ways[title]()
                rates[title].append(len(paths) / (time.perf_counter() - start))
    ratio = median(ours / theirs for ours, theirs in zip(rates["jaxtrain"], rates["bare"], strict=True))
    found = {"images_per_second": rates, "jaxtrain_over_bare": ratio}
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
