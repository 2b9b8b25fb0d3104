"""`folder:PATH`: image files, one folder a class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxtrain.config import DataConfig
from jaxtrain.data.assemble import assemble
from jaxtrain.data.base import Dataset, FileSource, ImageSource
from jaxtrain.data.known import Known
from jaxtrain.data.paths import existing
from jaxtrain.data.scan import drop_bad, scan_files
from jaxtrain.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LAYOUT = (
    "expected PATH/CLASS/*.jpg or PATH/{train,val,test}/CLASS/*.jpg "
    f"({', '.join(extension[1:] for extension in EXTENSIONS)})"
)


class _Split(NamedTuple):
    folder: Path
    classes: list[str]


def folder_dataset(config: DataConfig, text: str) -> Dataset:
    """Folders of classes, or train, val (valid, validation) and test folders of them.

    A folder PATH/train that itself holds folders makes it the second layout, in which other folders beside it
    are left alone. Classes are ordered by name as Python sorts strings, as torchvision does; folders within a
    class belong to it; hidden files and folders are ignored, links are followed, each folder once.

    The header of every file is read, of the test set's too: unreadable ones (empty, no image, no permission,
    over `max_pixels`) are dropped before the split up to `max_bad_images` in all, and listed. What only
    decoding shows, a truncated file, `find_bad_images` finds, or the stream when it gets there.

    Raises `UserError` for another layout, empty classes and splits of different classes; `RunError` for more
    unreadable images than allowed.
    """
    root = existing(text, "folder")
    if not root.is_dir():
        raise UserError(f"folder:{text} is a file: {_LAYOUT}")
    splits = _splits(root)
    classes = splits["train"].classes
    for split in splits.values():
        _check_same_classes(classes, split)

    sources = {name: _list_images(split) for name, split in splits.items()}
    headers = {name: scan_files([str(p) for p in s.paths], config.max_pixels) for name, s in sources.items()}
    kept, bad_images = drop_bad({n: (sources[n], headers[n].bad) for n in sources}, config.max_bad_images)
    test: ImageSource | None = kept.get("test")
    return assemble(
        config,
        name=config.name,
        class_names=tuple(classes),
        train=kept["train"],
        val=kept.get("val"),
        open_test=lambda: test,
        natural_channels=headers["train"].channels,
        uniform_size=headers["train"].uniform_size,
        known=Known(),
        bad_images=bad_images,
    )


def _splits(root: Path) -> dict[str, _Split]:
    tops = _subfolders(root)
    if not tops:
        raise UserError(f"folder:{root} has no class folders: {_LAYOUT}")
    by_split = {name.lower(): name for name in tops if name.lower() in _SPLITS}
    if "train" not in by_split or not _subfolders(root / by_split["train"]):
        return {"train": _Split(root, tops)}
    splits: dict[str, _Split] = {}
    for lower, name in by_split.items():
        split = _SPLITS[lower]
        if split in splits:
            raise UserError(f"folder:{root} has two folders for one split: {splits[split].folder.name} and {name}")
        classes = _subfolders(root / name)
        if not classes:
            raise UserError(f"{root / name} has no class folders: rename it if it is not a labelled split")
        splits[split] = _Split(root / name, classes)
    return splits


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not _hidden(entry.name) and _is_folder(entry))
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from None


def _check_same_classes(classes: list[str], split: _Split) -> None:
    missing, extra = sorted(set(classes) - set(split.classes)), sorted(set(split.classes) - set(classes))
    if missing or extra:
        lacks = f" lacks {', '.join(missing[:10])}" if missing else ""
        adds = f" has {', '.join(extra[:10])} besides" if extra else ""
        joined = " and" if lacks and adds else ""
        raise UserError(f"{split.folder} must have the classes of the train folder: it{lacks}{joined}{adds}")


def _list_images(split: _Split) -> FileSource:
    paths: list[str] = []
    counts = []
    empty = []
    for name in split.classes:
        found = _images_below(os.path.join(split.folder, name))
        paths += found
        counts.append(len(found))
        if not found:
            empty.append(name)
    if not paths:
        raise UserError(f"folder:{split.folder} holds no images: {_LAYOUT}")
    if empty:
        names = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
        raise UserError(f"{split.folder} has class folders without an image: {names}")
    return FileSource(paths, np.repeat(np.arange(len(counts), dtype=np.int32), counts))


def _images_below(folder: str) -> list[str]:
    """Every image file below a folder, ordered by path; a folder that links lead to again is read once."""
    seen: set[tuple[int, int]] = set()
    found: list[str] = []
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(current) as entries:
            for entry in entries:
                if _hidden(entry.name):
                    continue
                if _is_folder(entry):
                    waiting.append(entry.path)
                # Broken links count, to be reported as unreadable; pipes and devices do not.
                elif entry.name.lower().endswith(EXTENSIONS) and (entry.is_symlink() or entry.is_file()):
                    found.append(entry.path)
    return sorted(found)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A link may lead to itself, at which `is_dir` raises.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
