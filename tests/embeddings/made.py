"""A pretended backbone, shared by the tests of the embedding store; as a script it fills a store slowly."""

import sys
import time
from pathlib import Path

import numpy as np

from jaxtrain.data.base import ArraySource
from jaxtrain.data.digest import images_fingerprint
from jaxtrain.embeddings.key import EmbeddingKey
from jaxtrain.embeddings.store import EmbeddingStore

DIM, SHARD, COUNT = 8, 32, 301
PROJECTION = np.random.default_rng(7).normal(size=(27, DIM)).astype(np.float32)


def images(count, seed=0):
    rng = np.random.default_rng(seed)
    return ArraySource(
        rng.integers(0, 256, (count, 3, 3, 3), dtype=np.uint8), rng.integers(0, 3, count).astype(np.int32)
    )


def vectors(source):
    """One by one, so that no row depends on what it is computed with."""
    return np.stack([source.read(i).reshape(-1).astype(np.float32) @ PROJECTION for i in range(len(source))])


def key_of(source, **changes):
    fields = {
        "images": images_fingerprint(source),
        "weights": "0" * 64,
        "model": "tiny",
        "model_options": {"patch_size": 4, "registers": [1, 2]},
        "image_size": 3,
        "channels": 3,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "max_pixels": 1000,
        "pool": "avg",
        "blocks": 1,
        "dtype": "float32",
        "view": 0,
        "augmentation": None,
    }
    return EmbeddingKey(**{**fields, **changes})


class Backbone:
    """Blocks of 12 rows, which no shard is a multiple of; counts the images that it sees."""

    def __init__(self, seconds=0.0):
        self.seen, self.calls, self.seconds = 0, 0, seconds

    def __call__(self, source):
        self.calls += 1
        for start in range(0, len(source), 12):
            part = source.select(np.arange(start, min(start + 12, len(source))))
            time.sleep(self.seconds)
            self.seen += len(part)
            yield vectors(part)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def fill(root, source=None, backbone=None, **options):
    """One split of `COUNT` images, through a store of small shards."""
    source = images(COUNT) if source is None else source
    return EmbeddingStore(root, shard_images=SHARD).get(key_of(source), source, backbone or Backbone(), **options)


if __name__ == "__main__":
    root, count, seconds, index, processes = sys.argv[1:]
    source = images(int(count))
    print("ready", flush=True)
    sys.stdin.readline()
    found = EmbeddingStore(Path(root), shard_images=SHARD).get(
        key_of(source), source, Backbone(float(seconds)), process_index=int(index), process_count=int(processes)
    )
    assert np.array_equal(found.load(), vectors(source))
    print(found.computed)
