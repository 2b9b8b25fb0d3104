"""Embedding through the store against the bare forward pass over the same batches; figures are ratios.

    python scripts/bench_features.py [--model NAME] [--images N] [--size PIXELS] [--rounds N] [--json FILE]

Rounds are interleaved, so that a busy machine slows both alike; medians. Ours reads images from memory, places batches,
computes, checks, writes and syncs shards, each round into a new store. Compilation is apart.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import jax
import numpy as np

from jaxtrain import FEClassifier, PTClassifier
from jaxtrain.data.arrays import from_arrays
from jaxtrain.runs.extraction import Extractor
from jaxtrain.training.inference import Inference
from jaxtrain.training.parallel import make_strategy
from jaxtrain.training.technique import Binding


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (arguments.images, arguments.size, arguments.size, 3), np.uint8)
    dataset = from_arrays(images, np.arange(len(images)) % 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {"model": {"name": arguments.model}, "train": {"steps": 1, "batch_size": 2}, "quiet": True}
        PTClassifier(run_dir=folder / "pt", tracking={"enabled": False}, **options).fit(images[:4], [0, 1, 0, 1])
        classifier = FEClassifier(model={"weights": str(folder / "pt")}, data={"val_fraction": 0.0})
        technique = classifier.bind(classifier.resolve(classifier.config, dataset), Binding(2))
        strategy = make_strategy(technique.config.parallel)
        inference = Inference(technique, strategy)
        shapes = {**inference.network.shapes, "params": {}}
        weights = strategy.place(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
        batches = [batch for batch, _ in inference.batches(dataset.train)]
        forward = inference.compiled("embed")
        jax.block_until_ready(forward(weights, batches[0]))
        times: dict[str, list[float]] = {"bare": [], "jaxtrain": []}
        for number in range(arguments.rounds):
            start = time.perf_counter()
            jax.block_until_ready([forward(weights, batch) for batch in batches])
            times["bare"].append(time.perf_counter() - start)
            features = technique.config.features.model_copy(update={"store": folder / f"store{number}"})
            inference.config = technique.config.model_copy(update={"features": features})
            start = time.perf_counter()
            Extractor(technique, inference, weights, "0" * 64)(dataset.train)
            times["jaxtrain"].append(time.perf_counter() - start)
    for name, values in times.items():
        speed = len(dataset.train) / median(values)
        print(f"{name:10} {speed:9,.0f} images/s  {median(times['bare']) / median(values):5.2f} of bare")
    if arguments.json:
        arguments.json.write_text(json.dumps({"seconds": times, "images": len(dataset.train)}, indent=2))


if __name__ == "__main__":
    main()
