"""Embedding on a worker of a local Ray cluster against this process alone, over the same files; figures are ratios.

    python scripts/bench_cluster.py [--model NAME] [--images N] [--size PIXELS] [--rounds N] [--json FILE]

Rounds are interleaved, so that a busy machine slows both alike; medians. Both read, decode, compute, check and
write shards, each round into a new store. The starts of Ray and of its worker, and compilation, are apart.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from jaxtrain import PTClassifier
from jaxtrain.classifiers.embedding import open_embedding
from jaxtrain.cluster.embed import embedded
from jaxtrain.cluster.pool import Workers
from jaxtrain.cluster.session import connected
from jaxtrain.config import Config
from jaxtrain.embeddings.store import EmbeddingStore


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--images", type=int, default=6144)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's is 15, which on a busy machine measures the others
    with connected("local") as session, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", arguments.images, arguments.size)
        train(folder / "run", arguments.model, arguments.size)
        data = {"name": f"folder:{folder / 'images'}", "val_fraction": 0.0}
        config = Config.model_validate({"technique": "fe", "data": data, "model": {"weights": str(folder / "run")}})
        embedding = open_embedding(config.replace(quiet=True))
        extractor, source = embedding.backbone.extractor, embedding.dataset.train
        ways = {"alone": extractor.rows, "ray": embedded(Workers(session, {"cpu": 1.0}, 1), embedding)}
        key = extractor.key(source, 0)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(arguments.rounds + 1):
            digests = set()
            for way, rows in ways.items():
                start = time.perf_counter()
                found = EmbeddingStore(folder / f"{way}{number}").get(
                    key, source, lambda part, rows=rows: rows(part, 0)
                )
                times[way].append(time.perf_counter() - start)
                digests.add(found.files.digest())
            assert len(digests) == 1, "the vectors differ"
    seconds = {way: median(each[1:]) for way, each in times.items()}  # the first round compiles
    ratios = [alone / ray for alone, ray in zip(times["alone"][1:], times["ray"][1:], strict=True)]
    result = {f"{way}_images_per_second": arguments.images / each for way, each in seconds.items()}
    result |= {"ratio": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    print("  ".join(f"{name} {value:.2f}" for name, value in result.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"model": arguments.model, "images": arguments.images, **result}))


def write_images(folder: Path, count: int, size: int) -> None:
    """JPEG files of two classes."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / str(number % 2) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path)


def train(run_dir: Path, model: str, size: int) -> None:
    """The network whose backbone embeds."""
    images = np.zeros((4, size, size, 3), np.uint8)
    options = {"model": {"name": model}, "train": {"steps": 1, "batch_size": 2}, "tracking": {"enabled": False}}
    PTClassifier(run_dir=run_dir, quiet=True, **options).fit(images, [0, 1, 0, 1])


if __name__ == "__main__":
    main()
