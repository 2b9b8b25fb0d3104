"""One process of a run on digits whose images carry their number; `launch.py` starts it.

python worker.py TECHNIQUE RUN_DIR OPTIONS TEST: options as JSON, by section; for TEST see `run`.
"""

import json
import os
import sys
from pathlib import Path

# On a busy machine the threads of the devices can take longer to meet than the 40 seconds after which XLA gives up.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_collective_call_terminate_timeout_seconds=240"

import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from jaxtrain import FEClassifier, FTClassifier, PTClassifier
from jaxtrain.cli.main import guard
from jaxtrain.config import chosen
from jaxtrain.training import processes

TRAIN, VAL, TEST = slice(0, 1000), slice(1000, 1201), slice(1201, 1502)


def images() -> np.ndarray:
    """Digits `uint8[1797, 8, 8]`; the first two pixels, which no digit needs, hold the number of the image."""
    pixels = (load_digits().images * 255 / 16).round().astype(np.uint8)
    numbers = np.arange(len(pixels))
    pixels[:, 0, 0], pixels[:, 0, 1] = numbers // 256, numbers % 256
    return pixels


class Marked:
    """Logs two figures from which the images of a batch can be told."""

    def loss(self, model, batch, key):
        loss, metrics = super().loss(model, batch, key)
        mean, std = chosen(self.config.data.mean)[0], chosen(self.config.data.std)[0]
        pixels = jnp.round((batch.image[:, 0, :2, 0] * std + mean) * 255)
        numbers = pixels[:, 0] * 256 + pixels[:, 1]
        return loss, {**metrics, "number": jnp.mean(numbers), "hash": jnp.mean(numbers * 31 % 1009)}


class MarkedPT(Marked, PTClassifier):
    pass


class MarkedFT(Marked, FTClassifier):
    pass


def run() -> None:
    """TEST is a JSON object: `stop_at`: step; `fails`: [process, step]; `heartbeat`: seconds until a
    silent process is dead."""
    technique, run_dir, options, test = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
    if "stop_at" in test:
        stop_at(test["stop_at"])
    if "fails" in test:
        fail_in(*test["fails"])
    processes.HEARTBEAT_SECONDS = test.get("heartbeat", 900)  # a busy machine may halt us for minutes
    if technique == "fe":
        small_shards()
    classifier = {"pt": MarkedPT, "ft": MarkedFT, "fe": FEClassifier}[technique](run_dir=run_dir, **options)
    pixels, labels = images(), load_digits().target
    train, val, held_out = ((pixels[part], labels[part]) for part in (TRAIN, VAL, TEST))
    classifier.fit(*train, validation=val, test=held_out)
    logits = classifier.predict_logits(pixels[TEST])  # each process by itself
    np.save(f"{run_dir}-{os.getpid()}.npy", logits)


def stop_at(last: int) -> None:
    """As if a signal came in step `last`."""
    from jaxtrain.runs import stepwise

    stepwise.Agreement = lambda stop: lambda step, overdue: (step >= last, overdue)


def fail_in(process: int, step: int) -> None:
    """As if the disk of one process were full."""
    from jaxtrain.runs.callbacks import Recording

    log = Recording.log

    def failing(self, at, metrics):
        if (processes.index(), at) == (process, step):
            raise OSError(f"no space left in step {step}")
        log(self, at, metrics)

    Recording.log = failing


def small_shards() -> None:
    """So that every process has some to compute."""
    from jaxtrain.embeddings.store import EmbeddingStore

    EmbeddingStore.__init__.__kwdefaults__["shard_images"] = 64


if __name__ == "__main__":
    guard(run)
