"""Whether a training set lives on the device, and its images as one array if it does."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Literal

import numpy as np

from jaxtrain.config import Config, DataConfig, chosen
from jaxtrain.data.base import ArraySource, Dataset, ImageSource, weights_of
from jaxtrain.data.decode import BadImageError, naming_memory_errors, read_image
from jaxtrain.data.scan import parallel
from jaxtrain.data.transforms import Interpolation, center_crop_resize, keeps_as_it_is
from jaxtrain.errors import RunError, UserError


def loader(dataset: Dataset, data: DataConfig, *, native: bool) -> Literal["device", "stream"]:
    """Where the training set of a run lives; `native`: at its own size, not at the model's."""
    if data.loader != "auto":
        return data.loader
    if dataset.uniform_size is None:
        return "stream"
    height, width = dataset.uniform_size if native else (chosen(data.image_size),) * 2
    megabytes = len(dataset.train) * height * width * dataset.channels * dataset.bits / 8e6
    return "stream" if megabytes > data.device_budget_mb else "device"


def make_resident(dataset: Dataset, config: Config) -> Dataset | None:
    """The data set with its training and validation images decoded into arrays, or None where it has to be streamed.

    Images have the model's size, except for crop=random_resized, which needs them at their own (common) size. Those
    that cannot be read are dropped up to `data.max_bad_images`; more raise RunError with their names. UserError for
    loader=device where that cannot be.
    """
    data = config.data
    size = chosen(data.image_size)
    native = config.augment.crop == "random_resized"
    if loader(dataset, data, native=native) == "stream":
        return None
    if native and dataset.uniform_size is None:
        raise UserError(
            "data.loader: random_resized crops of images of several sizes must be streamed; "
            "set augment.crop=pad or data.loader=stream"
        )
    bad: dict[str, str] = {}
    shape = dataset.uniform_size if native and dataset.uniform_size else (size, size)
    train = _decoded(dataset.train, config, None if native else size, bad, shape)
    val = None if dataset.val is None else _decoded(dataset.val, config, size, bad, (size, size))
    dataset.bad_images.add(bad.items())
    return replace(dataset, train=train, val=val)


def _decoded(
    source: ImageSource, config: Config, size: int | None, bad: dict[str, str], shape: tuple[int, int]
) -> ArraySource:
    """All images as one array `uint8[images, *shape, channels]`, in threads; `bad` gets what was dropped."""
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
            with naming_memory_errors(source, index):
                image = read_image(source, index, channels=channels, max_pixels=data.max_pixels)
                image = image if size is None else center_crop_resize(image, size, crop_pct, interpolation)
        except BadImageError as error:
            return str(error)
        if image.shape[:2] != shape:
            return f"{image.shape[1]}x{image.shape[0]}, but {shape[1]}x{shape[0]} in its header"
        return image

    found = parallel(one, len(source), min(os.cpu_count() or 1, 16))
    bad |= {source.describe(i): reason for i, reason in enumerate(found) if isinstance(reason, str)}
    images = [image for image in found if not isinstance(image, str)]
    if not images:
        raise RunError(f"none of the {len(source)} images can be read; the first: {source.describe(0)}: {found[0]}")
    places = np.flatnonzero([not isinstance(image, str) for image in found])
    given = weights_of(source)
    weights = None if given is None else given[places]
    loaded = source.select(places) if bad else source
    return ArraySource(
        np.stack(images), source.labels[places], prepared=size is not None, weights=weights, loaded=loaded
    )
