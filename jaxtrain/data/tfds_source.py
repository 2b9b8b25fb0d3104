"""`tfds:NAME[/CONFIG][:VERSION]`: data sets of tensorflow-datasets, read without TensorFlow."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxtrain.archives import open_npz
from jaxtrain.config import DataConfig
from jaxtrain.data.assemble import assemble
from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import Dataset, ImageSource, Labels
from jaxtrain.data.known import KNOWN, Known
from jaxtrain.data.records import features_of, open_records
from jaxtrain.data.scan import Header, Headers, collect, drop_bad, header_of, parallel, refuse_large
from jaxtrain.data.splits import standing_in
from jaxtrain.errors import DamagedError, UserError, nearest
from jaxtrain.files import user_cache

_CACHE_AFTER_SECONDS = 2.0
_CONNECT_SECONDS = 10.0


class _Features(NamedTuple):
    image: str
    label: str
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class TfdsSource:
    """Records of a prepared split; only its place travels to worker processes, which open it themselves."""

    folder: str
    """The prepared data set: the folder that holds dataset_info.json."""
    split: str
    image_feature: str
    labels: Labels
    positions: NDArray[np.int64]
    """Place of each image in the split as prepared."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """The encoded image."""
        record = open_records(self.folder, self.split)[int(self.positions[index])]
        return features_of(record)[self.image_feature].bytes_list.value[0]

    def describe(self, index: int) -> str:
        """Split and place."""
        return f"{self.folder} {self.split} record {self.positions[index]}"

    def select(self, indices: NDArray[np.int64]) -> TfdsSource:
        """Fewer of these images, or in another order."""
        return TfdsSource(self.folder, self.split, self.image_feature, self.labels[indices], self.positions[indices])


def tfds_dataset(config: DataConfig, text: str) -> Dataset:
    """A prepared data set, or one that is prepared now, where the network and its code allow.

    It is read from `config.dir` (default: the library's own folder, `~/tensorflow_datasets` or
    `TFDS_DATA_DIR`); `config.dir` may also be the folder of one version itself. Splits train, validation and
    test are used; a test split without labels (-1, as ImageNet's) is none.

    The first use reads every record once for its label and header; the result is kept in the user's cache
    folder when that took more than two seconds.

    Raises `UserError` for unknown names, sets that are not image classification or cannot be prepared here;
    `RunError` for more unreadable images than allowed.
    """
    builder = _prepared(text, config)
    name = builder.name
    features = _features(builder, text)
    splits = builder.info.splits
    named = standing_in({{"validation": "val"}.get(split, split): split for split in splits}, config.split)
    if "train" not in named:
        raise UserError(f"tfds:{text} has no split 'train'; its splits: {', '.join(splits) or 'none'}")
    folder = str(builder.data_path)
    read = {
        split: _read_split(folder, named[split], features, config.max_pixels)
        for split in ("train", "val")
        if split in named
    }
    for split, (source, _) in read.items():
        unlabelled = int((source.labels < 0).sum())
        if unlabelled:
            raise UserError(f"tfds:{text} {named[split]} has {unlabelled:,} images without a label")
    bad_images = BadImages(config.max_bad_images)
    kept = drop_bad({split: (source, headers.bad) for split, (source, headers) in read.items()}, bad_images)

    def open_test() -> ImageSource | None:
        if "test" not in splits:
            return None
        test, headers = _read_split(folder, "test", features, config.max_pixels)
        if (test.labels < 0).all():
            return None
        return drop_bad({"test": (test, headers.bad)}, bad_images)["test"]

    return assemble(
        config,
        name=config.name,
        class_names=features.class_names,
        train=kept["train"],
        val=kept.get("val"),
        open_test=open_test,
        natural_channels=read["train"][1].channels,
        uniform_size=read["train"][1].uniform_size,
        known=KNOWN.get(name, Known()),
        bad_images=bad_images,
    )


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Without the warnings of what tensorflow-datasets looks for and does not find; its errors become ours."""
    loggers = [logging.getLogger(name) for name in ("absl", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@_errors_only()
def _prepared(text: str, config: DataConfig) -> Any:
    """The builder of a set that lies prepared on disk, or that is prepared now."""
    import tensorflow_datasets as tfds

    if config.dir is not None and (config.dir / "dataset_info.json").is_file():
        builder = tfds.builder_from_directory(config.dir)
        if builder.name != _set_name(text):
            raise UserError(f"data.dir {config.dir} holds tfds:{builder.name}, not tfds:{text}")
        return builder
    options = {} if config.dir is None else {"data_dir": config.dir.expanduser()}
    try:
        builder = tfds.builder(text, **options)
    except Exception as error:  # an unknown name, configuration or version: several kinds, many lines
        raise UserError(f"tfds:{text} is unknown: {_choices(text, config.dir) or _one_line(error)}") from None
    if not builder.is_prepared():
        builder = _prepare(text, options)
    return builder


def _prepare(text: str, options: dict[str, Any]) -> Any:
    import tensorflow_datasets as tfds

    builder = tfds.builder(text, file_format="array_record", **options)
    folder = builder.data_path.parents[1 if builder.builder_config is None else 2]
    try:
        _check_connection(builder, folder / "downloads")
        builder.download_and_prepare()
    except (Exception, SystemExit) as error:
        raise UserError(
            f"tfds:{text} is not prepared in {folder} and cannot be prepared here ({_one_line(error)}): "
            f"where TensorFlow and the network are at hand, run "
            f"`tfds build {text} --data_dir=DIR`, then give --data.dir DIR"
        ) from None
    return builder


def _check_connection(builder: Any, downloads: Path) -> None:
    """Raises ConnectionError at once where what is to be downloaded cannot be reached; the library tries for minutes.

    `downloads`: what it has downloaded before, which may be all that it needs.
    """
    address = next((url for url in builder.url_infos or {} if url.startswith("http")), None)
    if address is None or (downloads.is_dir() and any(downloads.iterdir())):
        return
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_CONNECT_SECONDS):
            pass
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(error, urllib.error.HTTPError) or isinstance(reason, ssl.SSLError):
            return  # something answers; the library has certificates of its own
        raise ConnectionError(f"{urllib.parse.urlsplit(address).hostname} cannot be reached: {reason}") from None


def _choices(text: str, folder: Path | None) -> str:
    """What could have been meant: versions on disk, else configurations and versions, else names."""
    import tensorflow_datasets as tfds

    name = _set_name(text)
    on_disk = [] if folder is None else sorted(info.parent for info in folder.glob("*/**/dataset_info.json"))
    prepared = [f"{version.parent.relative_to(folder).as_posix()}:{version.name}" for version in on_disk if folder]
    if any(place.startswith((f"{name}/", f"{name}:")) for place in prepared):
        return nearest(text, [place for place in prepared if place.startswith(name)])
    if name in (known := tfds.list_builders(with_community_datasets=False)):
        builder = tfds.builder_cls(name)
        config = text.partition("/")[2].partition(":")[0]
        if config and config not in builder.builder_configs:
            return nearest(f"{name}/{config}", [f"{name}/{choice}" for choice in builder.builder_configs] or [name])
        return nearest(
            text,
            [f"{text.partition(':')[0]}:{version}" for version in (builder.VERSION, *builder.SUPPORTED_VERSIONS)],
        )
    return nearest(name, {*known, *map(_set_name, prepared)})


def _set_name(text: str) -> str:
    """NAME of NAME/CONFIG:VERSION."""
    return text.partition("/")[0].partition(":")[0]


def _features(builder: Any, text: str) -> _Features:
    """Which features are image and label: the supervised pair, else the only ones of their kind."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    pair = builder.info.supervised_keys
    if pair is None:
        images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
        pair = (images[0], labels[0]) if len(images) == len(labels) == 1 else None
    image, label = (features.get(key) if isinstance(key, str) else None for key in (pair or (None, None))[:2])
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        kinds = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise UserError(f"tfds:{text} has no pair of an Image and a ClassLabel to train on; it has {kinds}")
    if image.np_dtype == np.float32:
        raise UserError(f"tfds:{text} holds float images, which have no known range")
    return _Features(pair[0], pair[1], tuple(label.names))


def _read_split(folder: str, split: str, features: _Features, max_pixels: int) -> tuple[TfdsSource, Headers]:
    """Labels and headers of all records: in one pass, or as an earlier one left them in the cache."""
    records = open_records(folder, split)
    cache = _cache_file(folder, split, features)
    started = time.monotonic()
    if (known := _load_cache(cache, len(records))) is None:
        found = parallel(lambda position: _look(records[position], features), len(records), workers=4)
        labels = np.array([label for label, _ in found], np.int32)
        headers = collect([header for _, header in found])
        if time.monotonic() - started > _CACHE_AFTER_SECONDS:
            _save_cache(cache, labels, headers)
    else:
        labels, headers = known
    source = TfdsSource(folder, split, features.image, labels, np.arange(len(labels)))
    return source, refuse_large(headers, max_pixels)


def _look(record: bytes, features: _Features) -> tuple[int, Header]:
    values = features_of(record)
    return values[features.label].int64_list.value[0], header_of(values[features.image].bytes_list.value[0])


def _cache_file(folder: str, split: str, features: _Features) -> Path:
    """Named after everything the result depends on: the files by size and time, and the features."""
    files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in Path(folder).iterdir())
    key = hashlib.sha256(repr((folder, split, features, files)).encode()).hexdigest()
    return user_cache() / "tfds" / f"{key[:32]}.npz"


def _save_cache(path: Path, labels: Labels, headers: Headers) -> None:
    bad = np.array([[index, reason] for index, reason in headers.bad.items()], np.str_).reshape(-1, 2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, labels=labels, sizes=headers.sizes, grey=headers.grey, bad=bad)
        partial.replace(path)
    except OSError:
        return  # a full or read-only home costs time at the next start, nothing else


def _load_cache(path: Path, count: int) -> tuple[Labels, Headers] | None:
    try:
        with open_npz(path, "cache") as file:
            bad = {int(index): str(reason) for index, reason in file["bad"]}
            labels, headers = file["labels"], Headers(file["sizes"], file["grey"], bad)
    except (FileNotFoundError, DamagedError):
        return None
    return (labels, headers) if len(labels) == len(headers.sizes) == len(headers.grey) == count else None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
