"""The same networks in other software: in Keras and Lightning as `bench.py` times them, in one process, one line of
JSON; in PyTorch (timm) as `bench_models.py` times them, a line for each line of standard input.

Keras 3 on JAX (`fit`, its own input of NumPy arrays) with our `cnn_small`'s layers; Lightning's Trainer with a linear
model of 768 inputs, logging its loss every ten steps. Both train in epochs of the given number of steps, the first one
(compilation, warm-up) not timed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np

BATCH = 128


def keras_cnn(steps: int, rounds: int) -> list[float]:
    """Milliseconds per step of each round, `fit` on 28x28 images, AdamW."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    from keras import layers

    model = keras.Sequential([keras.Input((28, 28, 1))])
    for index, width in enumerate((16, 32, 64, 128)):
        model.add(layers.Conv2D(width, 3, padding="same", use_bias=False))
        if index < 3:
            model.add(layers.MaxPooling2D())
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3, weight_decay=0.05), loss, metrics=["accuracy"])
    images = np.random.default_rng(0).random((steps * BATCH, 28, 28, 1), np.float32)
    return _rounds(lambda: model.fit(images, np.arange(len(images)) % 10, batch_size=BATCH, verbose=0), steps, rounds)


def lightning_linear(steps: int, rounds: int) -> list[float]:
    """Milliseconds per step of each round, `Trainer.fit` of a linear model on tensors in memory, AdamW."""
    import lightning
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    class Linear(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(768, 10)

        def training_step(self, batch: Any, index: int) -> Any:
            images, labels = batch
            loss = torch.nn.functional.cross_entropy(self.layer(images), labels)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-3)

    images = torch.rand(steps * BATCH, 768)
    loader = DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), BATCH, shuffle=True)
    folder = tempfile.mkdtemp()

    def fit() -> None:
        trainer = lightning.Trainer(
            max_epochs=1, log_every_n_steps=10, default_root_dir=folder, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu",
        )  # fmt: skip
        trainer.fit(Linear(), loader)

    return _rounds(fit, steps, rounds)


def timm_model(name: str, batch: int, size: int, work: str, layout: str) -> Any:
    """A train step with AdamW, or an embedding pass."""
    import timm
    import torch

    memory = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    model = timm.create_model(name, num_classes=10, **({"img_size": size} if name.startswith("vit") else {}))
    model = model.to(memory_format=memory)
    images = torch.randn(batch, 3, size, size).to(memory_format=memory)
    labels = torch.arange(batch) % 10
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def embed() -> None:
        with torch.inference_mode():
            model.forward_head(model.forward_features(images), pre_logits=True)

    model.train(work == "train")
    return train if work == "train" else embed


def _rounds(run: Any, steps: int, rounds: int) -> list[float]:
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) / steps * 1e3)
    return times


if __name__ == "__main__":
    if sys.argv[1] == "timm":
        from bench_models import measure as timed

        timed(timm_model(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:7]))
        sys.exit()
    measure = {"keras-cnn": keras_cnn, "lightning-linear": lightning_linear}[sys.argv[1]]
    print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))))
