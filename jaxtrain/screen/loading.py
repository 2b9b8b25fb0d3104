"""A bar while the images of a data set are looked at for the first time, which of a million files takes minutes."""

from __future__ import annotations

import time
from contextlib import ExitStack

from jaxtrain.config import DataConfig
from jaxtrain.data.base import Dataset
from jaxtrain.data.scan import telling
from jaxtrain.data.sources import load_dataset
from jaxtrain.screen.progress import Progress

_SECONDS = 1.0
"""What takes less shows nothing."""


def load_with_bar(config: DataConfig, *, quiet: bool) -> Dataset:
    """`load_dataset`."""
    started = time.monotonic()
    bars: list[Progress] = []
    with ExitStack() as stack:

        def tell(done: int, total: int) -> None:
            if not bars and time.monotonic() - started > _SECONDS:
                bars.append(stack.enter_context(Progress(title=f"{config.name}: looking", quiet=quiet)))
            for bar in bars:
                bar.count(done, total)

        stack.enter_context(telling(tell))
        return load_dataset(config)
