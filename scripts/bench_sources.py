"""Where images come from: a folder beside tar shards, a parquet file and a table, with the same images in all.

Images per second of each source, JPEGs of 500x375 cropped to 224 pixels: each figure comes from a fresh process that
first fills its pipeline; rounds are interleaved, so that a busy machine slows all alike.

With `--start N` instead: N small images, loaded in fresh processes. The second start finds what the first has kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench_input import BATCH, SIZE, WARM_UP, make_images

SHARD = 1000


def names(folder: Path, which: str) -> dict[str, str]:
    """What `data.name` is for each source of `which`."""
    return {
        "folder": f"folder:{folder / which}",
        "csv": f"csv:{folder / which}.csv",
        "tar": f"wds:{folder / which}-tar",
        "parquet": f"parquet:{folder / which}.parquet",
    }


def write_forms(folder: Path, which: str) -> None:
    """The images of the folder `which` once more: `which.csv`, `which.parquet` and the shards `which-tar`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from jaxtrain.data.packing import Shards

    paths = sorted((folder / which).rglob("*.jpg"))
    labels = [path.parent.name for path in paths]
    rows = [f"{path.relative_to(folder)},{label}" for path, label in zip(paths, labels, strict=True)]
    (folder / f"{which}.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    schema = pa.schema([("image", pa.binary()), ("label", pa.string())])
    shards = Shards(folder / f"{which}-tar", megabytes=64)
    with pq.ParquetWriter(folder / f"{which}.parquet", schema) as table:
        for first in range(0, len(paths), SHARD):
            part = slice(first, first + SHARD)
            images = [path.read_bytes() for path in paths[part]]
            table.write_table(pa.table({"image": images, "label": labels[part]}, schema))
            for image, label in zip(images, labels[part], strict=True):
                shards.add("train", image, label)
    shards.close()


def write_small_images(folder: Path, which: str, count: int) -> None:
    """The folder `which` of that many images in 100 classes: links to a few files."""
    import cv2

    for i in range(count):
        original = folder / f"{i // 30_000}.jpg"  # file systems limit the links of a file
        if not original.exists():
            cv2.imwrite(str(original), np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8))
        place = folder / which / f"class_{i % 100:03d}" / f"image_{i:07d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.hardlink_to(original)


def rate(name: str, batches: int, workers: int) -> float:
    """Images per second of one source, in this process."""
    from jaxtrain.config import DataConfig
    from jaxtrain.data.order import Order
    from jaxtrain.data.sources import load_dataset
    from jaxtrain.data.stream import train_batches

    source = load_dataset(DataConfig(name=name, val_fraction=0.0)).train
    order = Order(len(source), BATCH, seed=0)
    crop: Any = {"image_size": SIZE, "channels": 3, "crop": "random_resized", "seed": 0}
    with train_batches(source, order, **crop, workers=workers) as stream:
        for _ in range(WARM_UP):
            next(stream)
        began = time.perf_counter()
        for _ in range(batches):
            next(stream)
        return batches * BATCH / (time.perf_counter() - began)


def start(few: str, name: str) -> dict[str, float]:
    """Seconds to load all entries in this process, and bytes of memory per image: what stays, and the peak."""
    from jaxtrain.config import DataConfig
    from jaxtrain.data.sources import load_dataset

    def memory(what: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])

    load_dataset(DataConfig(name=few, val_fraction=0.0))  # imports what it needs
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, began, worked = memory("VmRSS"), time.perf_counter(), time.process_time()
    data = load_dataset(DataConfig(name=name, val_fraction=0.0))
    found = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}
    for title, what in (("bytes_kept", "VmRSS"), ("bytes_at_peak", "VmHWM")):
        found[title] = (memory(what) - before) / len(data.train)
    return found


def elsewhere(folder: Path, *arguments: str) -> Any:
    """What a fresh process finds with these arguments."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, __file__, *arguments]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(run.stdout.split(b"\n")[-2])


def compare_rates(folder: Path, rounds: int, batches: int, workers: int) -> dict[str, Any]:
    """Images per second in each round, and the median of the ratios to the folder's in the same round."""
    made = folder / "made"
    made.mkdir()
    make_images(made, 2000)
    for i, path in enumerate(sorted(made.glob("*.jpg"))):
        place = folder / "all" / f"class_{i % 10}" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    write_forms(folder, "all")
    rates: dict[str, list[float]] = {source: [] for source in names(folder, "all")}
    for _ in range(rounds):
        for source, name in names(folder, "all").items():
            more = ("--batches", str(batches), "--workers", str(workers))
            rates[source].append(elsewhere(folder, "--rate-of", name, *more))
    over = {s: median(a / b for a, b in zip(found, rates["folder"], strict=True)) for s, found in rates.items()}
    return {"images_per_second": rates, "over_folder": over}


def compare_starts(folder: Path, count: int) -> dict[str, Any]:
    """By source, of the first and the second start: seconds, and bytes per image."""
    for which, number in (("few", 200), ("all", count)):
        write_small_images(folder, which, number)
        write_forms(folder, which)
    found = {}
    for source, name in names(folder, "all").items():
        few = names(folder, "few")[source]
        found[source] = [elsewhere(folder, "--start-of", few, name) for _ in range(2)]
    return found


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=15, help=f"timed batches of {BATCH} a round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--start", type=int, metavar="N", help="how a set of N images starts, and nothing else")
    parser.add_argument("--rate-of", metavar="NAME", help="of this source only, in this process")
    parser.add_argument("--start-of", nargs=2, metavar=("FEW", "NAME"), help="of this source only, in this process")
    options = parser.parse_args()
    if options.rate_of:
        print(json.dumps(rate(options.rate_of, options.batches, options.workers)))
        return
    if options.start_of:
        print(json.dumps(start(*options.start_of)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.start:
            found = compare_starts(Path(folder), options.start)
        else:
            found = compare_rates(Path(folder), options.rounds, options.batches, options.workers)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
