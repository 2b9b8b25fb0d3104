"""Writing images into tar shards, which `wds:FOLDER` reads: any source, or what can be gone through only once."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtrain.config import ColumnsConfig, DataConfig
from jaxtrain.data.base import Images, ImageSource
from jaxtrain.data.decode import BadImageError, pixels_of, png_of
from jaxtrain.data.holdout import NOTHING_HELD_OUT
from jaxtrain.data.objects import fields_of, image_in
from jaxtrain.data.sources import load_dataset
from jaxtrain.data.tar_source import PACKED
from jaxtrain.data.transforms import resize
from jaxtrain.errors import RunError, UserError
from jaxtrain.files import reason


class Shards:
    """Tar files of images that are being written; they take their names when all is there."""

    def __init__(self, folder: Path, megabytes: int = 256) -> None:
        """Into a new folder, with files of about this many megabytes. Raises UserError where something is there."""
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: name a new folder")
        self._folder, self._partial = folder, folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._limit = megabytes * 1_000_000
        self._files: dict[str, list[Path]] = {}
        self._tar: tarfile.TarFile | None = None
        self._split, self._images = "", 0

    def add(self, split: str, image: bytes | Images, label: Any) -> None:
        """One more image; those of a split come one after the other."""
        if self._tar is None or split != self._split or self._tar.offset > self._limit:
            self._next(split)
        assert self._tar is not None
        data = image if isinstance(image, bytes) else png_of(image)
        stem = f"{self._images:09}"
        for extension, content in ((_extension(data), data), ("cls", str(label).encode())):
            member = tarfile.TarInfo(f"{stem}.{extension}")
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
        self._tar.members.clear()  # type: ignore[attr-defined]  # which would hold every member written
        self._images += 1

    def close(self, class_names: Sequence[str] | None = None) -> None:
        """All is there; the classes are in this order, where it is not that of their names."""
        self._end()
        files = {path.name: _sha256(path) for paths in self._files.values() for path in paths}
        told = {"images": self._images, "class_names": class_names, "sha256": files}
        (self._partial / PACKED).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        if self._folder.exists():
            self._folder.rmdir()
        self._partial.rename(self._folder)

    def drop(self) -> None:
        """Nothing is kept."""
        self._end()
        shutil.rmtree(self._partial, ignore_errors=True)

    def _next(self, split: str) -> None:
        self._end()
        paths = self._files.setdefault(split, [])
        paths.append(self._partial / f"{split}-{len(paths):05}.tar")
        self._split, self._tar = split, tarfile.open(paths[-1], "w")  # noqa: SIM115

    def _end(self) -> None:
        if self._tar is not None:
            self._tar.close()
        self._tar = None


def cache(images: Iterable[Any], folder: str | Path, *, columns: Mapping[str, str] | None = None) -> str:
    """Writes what can be gone through only once (a generator, a tf.data pipeline) into tar shards; gives their name.

    Items are pairs (image, label) or mappings with such columns; `columns` says which, as `data.columns` does. The name
    is what `data.name` takes. A folder that is complete already is not written again, and `images` not gone through.

    Raises UserError for items that are not labelled images, RunError where the folder cannot be written.
    """
    folder = Path(folder)
    if (folder / PACKED).is_file():
        return f"wds:{folder}"

    def items() -> Iterable[tuple[str, bytes | Images, Any]]:
        for number, item in enumerate(images):
            where = f"item {number}"
            image, label = fields_of(item, True, where, ColumnsConfig.model_validate(columns or {}))
            value, pixels = item[label], image_in(item[image], where, DataConfig(bits=8))
            yield "train", pixels, value.item() if hasattr(value, "item") else value

    return _write(items(), folder)


def pack(config: DataConfig, folder: Path, *, size: int | None = None, megabytes: int = 256) -> str:
    """Writes the data set of a config into tar shards, with the splits it has; gives the name of what was written.

    No images are held out: of the shards that is done as of the data set itself.

    `size`: the shorter side, to which larger images are reduced; they are then PNG. Others keep their bytes. Raises as
    `cache`, and as `load_dataset` does.
    """
    dataset = load_dataset(config.model_copy(update=NOTHING_HELD_OUT))
    if dataset.multilabel:
        raise UserError(f"{config.name}: images with several labels each are not packed; read them as they are")
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.open_test()}

    def items() -> Iterable[tuple[str, bytes | Images, Any]]:
        for split, source in splits.items():
            for index in range(0 if source is None else len(source)):
                assert source is not None
                yield (
                    split,
                    _read(source, index, size, config, dataset.channels),
                    dataset.class_names[source.labels[index]],
                )

    return _write(items(), folder, megabytes, dataset.class_names)


def _write(
    items: Iterable[tuple[str, bytes | Images, Any]],
    folder: Path,
    megabytes: int = 256,
    class_names: Sequence[str] | None = None,
) -> str:
    try:
        shards = Shards(folder, megabytes)
        try:
            for split, image, label in items:
                shards.add(split, image, label)
            shards.close(class_names)
        except BaseException:
            shards.drop()
            raise
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {reason(error)}") from error
    return f"wds:{folder}"


def _read(source: ImageSource, index: int, size: int | None, config: DataConfig, channels: int) -> bytes | Images:
    image = source.read(index)
    if size is None:
        return image
    try:
        pixels = pixels_of(image, channels=channels, max_pixels=config.max_pixels)
    except BadImageError as error:
        raise RunError(f"{source.describe(index)}: {error}") from None
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    if scale >= 1:
        return image
    return resize(pixels, max(size, round(height * scale)), max(size, round(width * scale)))


def _extension(data: bytes) -> str:
    """What the members of images are called: readers know images by their content too."""
    return "png" if data.startswith(b"\x89PNG") else "jpg"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
