"""Whether a training set lives on the device, and its images as one array if it does."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from jaxtrain.config import Config, chosen
from jaxtrain.data.base import ArraySource, Dataset, ImageSource
from jaxtrain.data.decode import BadImageError, read_image
from jaxtrain.data.transforms import Interpolation, center_crop_resize, keeps_as_it_is
from jaxtrain.errors import RunError, UserError


def make_resident(dataset: Dataset, config: Config) -> Dataset | None:
    """The data set with its training and validation images decoded into arrays, or None where it has to be streamed.

    Images have the model's size, but for crop=random_resized, which needs them at their own (common) size. Unreadable
    ones are dropped up to `data.max_bad_images`; more raise RunError with their names. UserError for loader=device
    where that cannot be.
    """
    data = config.data
    size = chosen(data.image_size)
    native = config.augment.crop == "random_resized"
    if data.loader == "stream":
        return None
    if native and dataset.uniform_size is None:
        if data.loader == "device":
            raise UserError(
                "data.loader: random_resized crops of images of several sizes must be streamed; "
                "set augment.crop=pad or data.loader=stream"
            )
        return None
    if not native and dataset.uniform_size is None and data.loader == "auto":
        return None
    height, width = dataset.uniform_size if native and dataset.uniform_size else (size, size)
    megabytes = len(dataset.train) * height * width * dataset.channels / 1e6
    if data.loader == "auto" and megabytes > data.device_budget_mb:
        return None
    bad: list[str] = []
    train = _decoded(dataset.train, config, None if native else size, bad)
    val = None if dataset.val is None else _decoded(dataset.val, config, size, bad)
    if len(bad) > data.max_bad_images:
        shown = "; ".join(bad[:20]) + ("; ..." if len(bad) > 20 else "")
        raise RunError(f"{len(bad)} images cannot be read (data.max_bad_images is {data.max_bad_images}): {shown}")
    return replace(dataset, train=train, val=val, bad_images=(*dataset.bad_images, *bad))


def _decoded(source: ImageSource, config: Config, size: int | None, bad: list[str]) -> ArraySource:
    """All images as one array `uint8[images, height, width, channels]`, in threads; `bad` gets what was dropped."""
    data = config.data
    channels, crop_pct = chosen(data.channels), chosen(data.crop_pct)
    interpolation: Interpolation = chosen(data.interpolation)
    if (
        isinstance(source, ArraySource)
        and source.images.shape[-1] == channels
        and (size is None or keeps_as_it_is(source.images.shape, size, crop_pct))
    ):
        return replace(source, prepared=size is not None)

    def one(index: int) -> np.ndarray | str:
        try:
            image = read_image(source, index, channels=channels, max_pixels=data.max_pixels)
        except BadImageError as error:
            return f"{source.describe(index)}: {error}"
        return image if size is None else center_crop_resize(image, size, crop_pct, interpolation)

    images: list[np.ndarray] = []
    kept: list[int] = []
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        for index, image in enumerate(pool.map(one, range(len(source)))):
            if isinstance(image, str):
                bad.append(image)
            else:
                images.append(image)
                kept.append(index)
    if not images:
        raise RunError(f"none of the {len(source)} images can be read; the first: {bad[0]}")
    places = np.array(kept, np.int64)
    given = source.weights if isinstance(source, ArraySource) else None
    weights = None if given is None else given[places]
    return ArraySource(np.stack(images), source.labels[places], prepared=size is not None, weights=weights)
