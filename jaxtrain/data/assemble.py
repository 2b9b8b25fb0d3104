"""From a source's splits to a `Dataset`: validation split, subset, channels, statistics."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from jaxtrain.config import DataConfig
from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import (
    ArraySource,
    Dataset,
    FileSource,
    Images,
    ImageSource,
    Labels,
    PartSource,
    Subset,
    weights_of,
)
from jaxtrain.data.decode import BadImageError, decode_16_bits, read_image, to_channels
from jaxtrain.data.header_cache import scan
from jaxtrain.data.holdout import hold_out, hold_out_fold, warn_of_shared_groups
from jaxtrain.data.known import Known
from jaxtrain.data.scan import Headers, drop_bad, find_bad_images
from jaxtrain.data.splits import Indices, stratified_subset
from jaxtrain.errors import UserError

_LUMA = np.array([19595, 38470, 7471], np.uint32)
_ROWS = 1024
_SAMPLED = 64
_log = logging.getLogger(__name__)


def assemble(
    config: DataConfig,
    *,
    name: str,
    class_names: tuple[str, ...],
    train: ImageSource,
    val: ImageSource | None,
    open_test: Callable[[], ImageSource | None],
    natural_channels: int,
    uniform_size: tuple[int, int] | None,
    known: Known,
    bad_images: BadImages | None = None,
) -> Dataset:
    """The data set as the rest of jaxtrain takes it.

    Without a test set of its own, `test_fraction` of the training images or one of `folds` is held out, then
    `val_fraction` of the rest without a validation split. With `split` those images are the test set, and there are no
    others. Arrays in memory get the data set's channels here; other sources are converted image by image as they are
    read.
    """
    check_names(name, class_names)
    if len(class_names) < 2:
        raise UserError(f"{name} has one class only ({', '.join(class_names)}): a classifier needs two or more")
    channels = config.channels or natural_channels
    if config.channels not in (None, 1, 3, natural_channels):
        raise UserError(f"data.channels {config.channels}: the images of {name} have {natural_channels}")
    if natural_channels not in (1, 3):
        channels = natural_channels  # which neither 1 nor 3 can stand for
    first = None if config.bits else _first_array(train)
    bits = config.bits or (16 if first is not None and first.dtype == np.uint16 else 8)
    config = config.model_copy(update={"bits": bits})
    drawn: ImageSource | None = None
    option = "folds" if config.folds is not None else "test_fraction"
    if getattr(config, option):
        if open_test() is not None:
            raise UserError(f"data.{option}: {name} has a test set of its own; leave the option out")
        fold = config.folds is not None
        train, drawn = (
            hold_out_fold(train, config, class_names) if fold else hold_out(train, option, config, class_names)
        )
    if config.split is not None:
        if config.split != "test":
            open_test = partial({"train": train, "val": val}.get, config.split)
        train, val = train.select(np.arange(0)), None
    elif val is None and config.val_fraction > 0:
        train, val = hold_out(train, "val_fraction", config, class_names)
    if config.max_train_images is not None and config.max_train_images < len(train):
        train = train.select(_subset(train, config.max_train_images, config.split_seed))
    mean, std = _statistics(config, known, channels)
    bad_images = bad_images or BadImages(config.max_bad_images)
    _warn_if_dark(name, train, config, channels)

    def open_converted() -> ImageSource | None:
        test = open_test() if drawn is None else drawn
        return None if test is None else _readable(with_channels(test, channels, config), config, channels, bad_images)

    return Dataset(
        name=name,
        class_names=class_names,
        train=with_channels(train, channels, config),
        val=None if val is None else with_channels(val, channels, config),
        open_test=open_converted,
        channels=channels,
        bits=bits,
        uniform_size=uniform_size,
        flips=known.flips,
        mean=mean,
        std=std,
        bad_images=bad_images,
    )


def check_names(name: str, class_names: Sequence[str]) -> None:
    """UserError for a class name that no file in UTF-8 can hold, as a folder's may be."""
    for class_name in class_names:
        try:
            class_name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{name}: the class name {class_name!a} is not valid UTF-8; rename it") from None


def assemble_splits(
    config: DataConfig,
    class_names: tuple[str, ...],
    sources: Mapping[str, ImageSource],
    headers: Mapping[str, Headers] | None = None,
) -> Dataset:
    """`assemble` for splits (train, val, test) of encoded images, whose headers are read where they are not given.

    Unreadable ones are dropped before the split up to `max_bad_images` in all, and listed; RunError for more.
    """
    seen = headers or {}
    headers = {name: seen.get(name) or scan(source, config.max_pixels) for name, source in sources.items()}
    bad_images = BadImages(config.max_bad_images)
    warn_of_shared_groups(sources, config)
    kept = drop_bad({name: (sources[name], headers[name].bad) for name in sources}, bad_images)
    natural, first = headers["train"].channels, _first_array(kept["train"])
    if first is not None and (bands := natural_channels(first.shape[-1], config.channels)) not in (1, 3):
        natural = bands
    return assemble(
        config,
        name=config.name,
        class_names=class_names,
        train=kept["train"],
        val=kept.get("val"),
        open_test=lambda: kept.get("test"),
        natural_channels=natural,
        uniform_size=headers["train"].uniform_size,
        known=Known(),
        bad_images=bad_images,
    )


def natural_channels(given: int, declared: int | None) -> int:
    """Channels of arrays that come with this many: the fourth is transparency unless declared, other bands stay."""
    return 3 if given == 4 != declared else given


def _first_array(source: ImageSource) -> Images | None:
    """The first image, where they are arrays: these have numbers of channels and kinds that no header tells."""
    first = None if isinstance(source, FileSource | PartSource) or not len(source) else source.read(0)
    return None if isinstance(first, bytes) else first


def _warn_if_dark(name: str, train: ImageSource, config: DataConfig, channels: int) -> None:
    """Warns where a sample of the images never passes an eighth of the range: 12 bits in 16, or a range of 0..1."""
    brightest, places = -1, np.linspace(0, len(train) - 1, min(len(train), _SAMPLED)).astype(int)
    for place in places.tolist():
        with suppress(BadImageError):
            image = read_image(train, place, channels=channels, max_pixels=config.max_pixels)
            brightest = max(brightest, int(image.max()) // (257 if image.dtype == np.uint16 else 1))
        if brightest >= 32:  # nearly always the first one
            return
    if brightest >= 0:
        advice = "rescale arrays to 0..255, and the samples of 16-bit files to 0..65535"
        _log.warning(
            "%s: %d training images are all no brighter than %d of 255: %s", name, len(places), brightest, advice
        )


def _readable(test: ImageSource, config: DataConfig, channels: int, bad_images: BadImages) -> ImageSource:
    """The test images without those that only decoding shows to be unreadable, which are entered in `bad_images`.

    They are looked for where some are allowed: else the first one that comes up stops the test, and is named then.
    Raises RunError where there are more than allowed.
    """
    if not config.max_bad_images or isinstance(test, ArraySource):
        return test
    bad = find_bad_images(test, channels=channels, max_pixels=config.max_pixels, workers=min(os.cpu_count() or 1, 16))
    return drop_bad({"test": (test, bad)}, bad_images)["test"]


def _subset(train: ImageSource, size: int, seed: int) -> Indices:
    try:
        return stratified_subset(train.labels, size, seed)
    except ValueError as error:
        raise UserError(f"data.max_train_images {size} is too few: {error}") from None


def with_channels(source: ImageSource, channels: int, config: DataConfig) -> ImageSource:
    """The same images with this many channels, where they are an array in memory; others are converted when read.

    UserError for an array that cannot be converted.
    """
    if config.bits == 16 and not (isinstance(source, ArraySource) and source.images.dtype == np.uint16):
        return Of16Bits(source, channels, config.max_pixels)
    if not isinstance(source, ArraySource) or source.images.shape[-1] == channels:
        return source
    if source.images.shape[-1] > 4 or channels not in (1, 3):
        raise UserError(f"{source.origin} images have {source.images.shape[-1]} channels, {channels} are needed")
    if isinstance(source.images, np.memmap):  # through `read`, one at a time
        return Subset(source, np.arange(len(source)))
    return dataclasses.replace(source, images=convert_channels(source.images, channels))


@dataclasses.dataclass(frozen=True)
class Of16Bits:
    """Another source, its images read as `uint16[height, width, channels]`."""

    source: ImageSource
    channels: int
    max_pixels: int

    @property
    def labels(self) -> Labels:
        """`int32[images]`."""
        return self.source.labels

    @property
    def weights(self) -> Any:
        """`float32[images]`, or None."""
        return weights_of(self.source)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What else is known of each image, `{name: [images]}`."""
        return getattr(self.source, "metadata", {})

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Images:
        """Raises BadImageError where an image cannot be read."""
        image = self.source.read(index)
        if isinstance(image, bytes):
            return decode_16_bits(image, channels=self.channels, max_pixels=self.max_pixels)
        image = to_channels(image, self.channels)
        return image if image.dtype == np.uint16 else image.astype(np.uint16) * np.uint16(257)

    def describe(self, index: int) -> str:
        """As the other source names it."""
        return self.source.describe(index)

    def select(self, indices: Indices) -> Of16Bits:
        """Fewer of these images, or in another order."""
        return dataclasses.replace(self, source=self.source.select(indices))


def convert_channels(images: Images, channels: int) -> Images:
    """`[images, height, width, 1 to 4]` to 1 channel or 3, by the rules of `decode_image`; of uint8 or uint16.

    Grey is Pillow's ITU-R 601 luma, to the bit; transparency is composited on white.
    """
    if images.shape[-1] == channels:
        return images
    converted = np.empty((*images.shape[:-1], channels), images.dtype)
    if images.shape[-1] == 1:
        converted[...] = images
    elif images.shape[-1] == 3 and images.dtype == np.uint8:
        for start in range(0, len(images), _ROWS):
            part = images[start : start + _ROWS]
            converted[start : start + _ROWS, ..., 0] = (part @ _LUMA + 0x8000) >> 16
    else:
        for i, image in enumerate(images):
            converted[i] = to_channels(image, channels)
    return converted


def _statistics(
    config: DataConfig, known: Known, channels: int
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation: the options', else the known ones where they fit the channels."""
    for option, values in (("mean", config.mean), ("std", config.std)):
        if values is not None and len(values) not in (1, channels):
            raise UserError(f"data.{option} has {len(values)} values, the images have {channels} channels")
    mean, std = known.mean, known.std
    if mean is not None and std is not None and channels != len(mean):
        # Grey as RGB keeps its statistics; those of a grey version of RGB images are not known.
        mean, std = (mean * channels, std * channels) if len(mean) == 1 else (None, None)
    return _per_channel(config.mean, channels) or mean, _per_channel(config.std, channels) or std


def _per_channel(values: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    return values * channels if values is not None and len(values) == 1 else values
