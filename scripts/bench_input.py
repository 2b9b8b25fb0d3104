"""Streaming input beside its peers: 500x375 JPEGs, random crops of 224 pixels, flips, batches ready on the device.

Each figure comes from a fresh process that first fills its pipeline; rounds are interleaved, so that a busy machine
slows all alike. torch: DataLoader, Pillow's antialiased bilinear. tf: tf.data, decode_and_crop_jpeg, which decodes
the crop alone, and bilinear resizing, antialiased as ours; "tf aliased" is TensorFlow's default, which is not. All read
and return uint8.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SIZE, BATCH, WARM_UP = 224, 128, 6


def make_images(folder: Path, count: int) -> None:
    """JPEGs of 500x375 at quality 90: fields at four scales and grain, about 80 KB each, as ImageNet's."""
    import cv2

    for i in range(count):
        rng = np.random.default_rng(i)
        picture = 128 + rng.normal(size=(375, 500, 1)).astype(np.float32) * rng.uniform(3, 10)
        for cells, strength, channels in ((6, 60, 3), (24, 30, 3), (96, 16, 1), (250, 9, 1)):
            field = rng.normal(size=(cells * 3 // 4 + 1, cells, channels)).astype(np.float32)
            field = cv2.resize(field, (500, 375), interpolation=cv2.INTER_CUBIC)
            picture = picture + strength * field.reshape(375, 500, channels)
        pixels = picture.clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i:05d}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])


def jaxtrain(paths: list[Path], workers: int | None) -> Iterator[Any]:
    """Our stream: crops on the host, flips on the device."""
    import jax

    from jaxtrain.data.base import FileSource
    from jaxtrain.data.order import Order
    from jaxtrain.data.stream import HostBatch, prefetch_to_device, train_batches

    @jax.jit
    def flip(images: jax.Array, step: int) -> jax.Array:
        flips = jax.random.bernoulli(jax.random.key(step), shape=(len(images), 1, 1, 1))
        return jax.numpy.where(flips, images[:, :, ::-1], images)

    def put(batch: HostBatch) -> tuple[jax.Array, jax.Array]:
        return jax.device_put(batch.images), jax.device_put(batch.labels)

    source = FileSource(paths, np.zeros(len(paths), np.int32))
    order = Order(len(paths), BATCH, seed=0)
    crop: Any = {"image_size": SIZE, "channels": 3, "crop": "random_resized", "seed": 0}
    with train_batches(source, order, **crop, workers=workers) as batches:
        for step, (images, _) in enumerate(prefetch_to_device(batches, put, depth=2)):
            yield jax.block_until_ready(flip(images, step))


def torch(paths: list[Path], workers: int | None) -> Iterator[Any]:
    """DataLoader with worker processes; the crop as torchvision's RandomResizedCrop draws it."""
    import math
    import random

    from PIL import Image
    from torch import from_numpy
    from torch.utils.data import DataLoader

    def box(width: int, height: int) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = width * height * random.uniform(0.08, 1)
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = random.randint(0, width - w), random.randint(0, height - h)
                return left, top, left + w, top + h
        return 0, 0, width, height

    class Files:
        def __len__(self) -> int:
            return 1000 * len(paths)

        def __getitem__(self, i: int) -> Any:
            image = Image.open(paths[i % len(paths)]).convert("RGB")
            image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box(*image.size))
            if random.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return from_numpy(np.array(image)), 0

    yield from DataLoader(Files(), BATCH, shuffle=True, num_workers=2 if workers is None else workers)  # type: ignore


def tf(paths: list[Path], workers: int | None, *, antialias: bool = True) -> Iterator[Any]:
    """tf.data as in TensorFlow's own ResNet recipe, which leaves antialiasing out."""
    import tensorflow as tf

    def load(path: Any) -> Any:
        data = tf.io.read_file(path)
        shape = tf.image.extract_jpeg_shape(data)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape, tf.zeros([1, 0, 4]), 0, 0.1, (3 / 4, 4 / 3), (0.08, 1.0), 10, True
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, [SIZE, SIZE], antialias=antialias)
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8), 0

    files = tf.data.Dataset.from_tensor_slices([str(p) for p in paths]).shuffle(len(paths)).repeat()
    yield from files.map(load, tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)


PIPELINES = {"jaxtrain": jaxtrain, "torch": torch, "tf": tf, "tf aliased": partial(tf, antialias=False)}


def measure(name: str, folder: Path, batches: int, workers: int | None) -> float:
    """Images per second of one pipeline, in this process."""
    stream = PIPELINES[name](sorted(folder.glob("*.jpg")), workers)
    for _ in range(WARM_UP):
        next(stream)
    start = time.perf_counter()
    for _ in range(batches):
        next(stream)
    return batches * BATCH / (time.perf_counter() - start)


def compare(folder: Path, peer_python: str, rounds: int, batches: int) -> dict[str, list[float]]:
    """Images per second of each pipeline in each round; torch and TensorFlow are `peer_python`'s."""
    rates: dict[str, list[float]] = {name: [] for name in PIPELINES}
    for _ in range(rounds):
        for name, found in rates.items():
            python = sys.executable if name == "jaxtrain" else peer_python
            command = [
                python,
                __file__,
                "--measure",
                name,
                "--images",
                str(folder),
                "--batches",
                str(batches),
            ]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(float(output.split()[-1]))
    return rates


def main() -> None:
    """Print one JSON object: the rates, their medians and ours over each peer's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter with torch and tensorflow")
    parser.add_argument("--images", type=Path, help="folder of JPEGs (default: 2,000 made for the purpose)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=30, help=f"timed batches of {BATCH} a round")
    parser.add_argument("--workers", type=int, help="of the pipeline measured (default: its own)")
    parser.add_argument("--measure", choices=PIPELINES, help="only this one, in this process")
    options = parser.parse_args()
    if options.measure:
        print(measure(options.measure, options.images, options.batches, options.workers))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.images is None:
            make_images(Path(folder), 2000)
        rates = compare(options.images or Path(folder), options.peer_python, options.rounds, options.batches)
    medians = {name: median(found) for name, found in rates.items()}
    ratios = {name: medians["jaxtrain"] / medians[name] for name in PIPELINES if name != "jaxtrain"}
    print(json.dumps({"images_per_second": rates, "median": medians, "jaxtrain_over": ratios}))


if __name__ == "__main__":
    main()
