"""`folder:PATH`: image files, one folder per class."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import DataConfig
from jaxtrain.data.assemble import assemble_splits, check_names
from jaxtrain.data.base import Dataset, FileSource
from jaxtrain.data.packed import Packed
from jaxtrain.data.paths import existing
from jaxtrain.data.remote import RemoteFile, is_remote
from jaxtrain.data.remote_cache import Cache
from jaxtrain.data.remote_folder import Entry, RemoteFolder, remote_folder
from jaxtrain.data.scan import parallel, why_no_image
from jaxtrain.data.splits import SPLIT_NAMES
from jaxtrain.errors import UserError

# Files with these names count as images, also where they turn out unreadable; others by their content.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".ico"),
)
_WRAPPERS = ("images", "data")
# What operating systems and network storage keep beside people's files: bins, snapshots, thumbnails.
_SYSTEM = (
    *("__macosx", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin"),
    *("system volume information", "lost+found", "thumbs.db", "desktop.ini"),
)
_LAYOUT = "expected PATH/CLASS/*.jpg or PATH/{train,val,test}/CLASS/*.jpg"
_SHOWN = 10
_log = logging.getLogger(__name__)

Folder = Path | RemoteFolder


class _Split(NamedTuple):
    folder: Folder
    classes: list[str]


class _Found(NamedTuple):
    images: Packed
    labels: NDArray[np.int32]
    lacking: list[str]
    """Classes without an image."""
    unused: list[str]
    """Files that are not images."""


def folder_dataset(config: DataConfig, text: str) -> Dataset:
    """Folders of classes, or folders of them for training, validation and test.

    Splits are known by their names: train or training, val, valid, validation or dev, test, testing or eval, in any
    case; or with other words beside these (seg_train, test_images) where every folder has such a name. A single folder,
    and images/ or data/ beside folders without images, are looked into. Folders of nothing but folders that none of
    this explains are asked about; `data.layout=classes` says that they are the classes.

    Classes are ordered by name as Python sorts strings, as torchvision does; folders within a class belong to it;
    hidden files and folders and those of the system are ignored, links are followed, each folder once. Images are
    known by their extension, else by their content. A validation or test set may lack classes, which is warned about.

    The header of every file is read, of the test set's too: unreadable ones (empty, no image, no permission,
    over `max_pixels`) are dropped before the split up to `max_bad_images` in all, and listed. What only
    decoding shows, a truncated file, `find_bad_images` finds, or the stream when it gets there.

    Raises `UserError` for another layout, training classes without images and unknown classes in other splits;
    `RunError` for more unreadable images than allowed.
    """
    root = _root(config, text)
    splits = {"train": _Split(root, _subfolders(root))} if config.layout == "classes" else _find_splits(root)
    classes = splits["train"].classes
    check_names(config.name, classes)
    found = {name: _list_images(split, classes) for name, split in splits.items()}
    if found["train"].lacking:
        raise UserError(f"{splits['train'].folder} has class folders without an image: {_few(found['train'].lacking)}")

    for warning in _warnings(root, splits, found):
        _log.warning("%s", warning)
    sources = {
        name: FileSource(root.files(part.images) if isinstance(root, RemoteFolder) else part.images, part.labels)
        for name, part in found.items()
    }
    dataset = assemble_splits(config, tuple(classes), sources)
    if splits["train"].folder == root:
        return dataset
    parts = ((name, str(split.folder)[len(str(root)) :].lstrip("/")) for name, split in splits.items())
    return replace(dataset, taken=", ".join(f"{name}: {part}" for name, part in parts))


def _root(config: DataConfig, text: str) -> Folder:
    if is_remote(text):
        return remote_folder(text, Cache.of(config.cache_gb), f"folder:{text}")
    root = existing(text, "folder")
    if not root.is_dir():
        raise UserError(f"folder:{text} is a file: {_LAYOUT}")
    return root


def _warnings(root: Folder, splits: Mapping[str, _Split], found: Mapping[str, _Found]) -> Iterator[str]:
    """What of the folder is not as one would think: missing classes, files and folders that are not used."""
    for name, split in splits.items():
        if found[name].lacking:
            yield f"{split.folder} has no images of {_few(found[name].lacking)}: the others are measured"
    if unused := [path for part in found.values() for path in part.unused]:
        yield f"{root}: {len(unused)} files are not used, as they are not images: {_by_kind(root, unused)}"
    loose = [path for split in splits.values() for path in _files(split.folder) if _named_image(path)]
    if loose:
        yield f"{root}: {len(loose)} images beside the class folders are not used: {_few(loose)}"
    level = splits["train"].folder.parent
    beside = {name for name in _subfolders(level) if level / name not in {s.folder for s in splits.values()}}
    if len(splits) > 1 and beside:
        yield f"{level}: folders that are not splits are not used: {_few(sorted(beside))}"


def _by_kind(root: Folder, paths: list[str]) -> str:
    """How many files of each extension, with what the first one is where that is known."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for path in paths:
        kind = os.path.splitext(path)[1].lower() or "without extension"
        counts[kind] += 1
        first.setdefault(kind, path)
    known = {kind: why_no_image(_file(root, path)) for kind, path in first.items()}
    named = (f"{n} {kind}" + (f" ({known[kind]})" if known[kind] else "") for kind, n in counts.most_common(_SHOWN))
    return ", ".join(named) + (", ..." if len(counts) > _SHOWN else "")


# --- which folders are what ------------------------------------------------------------------------


def _find_splits(root: Folder) -> dict[str, _Split]:
    root = _look_through(root)
    tops = _subfolders(root)
    if not tops:
        raise UserError(f"folder:{root} has no class folders: {_LAYOUT}")
    named = _named_splits(tops)
    train = next((name for name, split in named.items() if split == "train"), None)
    if train is None or not _subfolders(root / train):
        if train is not None and len(named) == len(tops) > 1:
            raise UserError(
                f"{root / train} has no class folders: {_LAYOUT}, or data.layout=classes where it is a class"
            )
        _refuse_folders_of_folders(root, tops)
        return {"train": _Split(root, tops)}
    splits: dict[str, _Split] = {}
    for name, split in sorted(named.items(), key=lambda item: item[1] != "train"):
        if split in splits:
            raise UserError(f"folder:{root} has two folders for one split: {splits[split].folder.name} and {name}")
        folder = _look_through(root / name, splits["train"].classes if splits else ())
        classes = _subfolders(folder)
        if not classes:
            raise UserError(f"{root / name} has no class folders: rename it if it is not a labelled split")
        splits[split] = _Split(folder, classes)
    return splits


def _named_splits(tops: list[str]) -> dict[str, str]:
    """Which folder is which split, by their names; empty where none is the training set."""
    exact = {name: SPLIT_NAMES[name.lower()] for name in tops if name.lower() in SPLIT_NAMES}
    if "train" in exact.values():
        return exact
    words = {name: {SPLIT_NAMES[w] for w in re.split(r"[^a-z]+", name.lower()) if w in SPLIT_NAMES} for name in tops}
    if all(len(splits) == 1 for splits in words.values()):
        loose = {name: splits.pop() for name, splits in words.items()}
        return loose if "train" in loose.values() else {}
    return {}


def _look_through(folder: Folder, classes: Collection[str] = ()) -> Folder:
    """Down through folders that only wrap others, though not into one of the known classes."""
    while True:
        tops = _subfolders(folder)
        inner = tops if len(tops) == 1 else [name for name in tops if name.lower() in _WRAPPERS]
        if len(inner) != 1 or inner[0] in classes or inner[0].lower() in SPLIT_NAMES:
            return folder
        below, others = folder / inner[0], (folder / name for name in tops if name != inner[0])
        if not _only_folders(below) or any(map(_holds_images, others)):
            return folder
        folder = below


def _refuse_folders_of_folders(root: Folder, tops: list[str]) -> None:
    below = [_subfolders(root / name) for name in tops]
    if all(_only_folders(root / name) for name in tops) and any(len(names) > 1 for names in below):
        raise UserError(
            f"folder:{root}: its folders ({_few(tops)}) hold folders only, as {tops[0]}/{below[0][0]}: where they are "
            "splits, name them train, val and test; where they are the classes, give data.layout=classes"
        )


def _only_folders(folder: Folder) -> bool:
    return bool(_subfolders(folder)) and not any(_named_image(path) for path in _files(folder))


def _holds_images(folder: Folder) -> bool:
    return any(_named_image(path) for path in _files_below(folder))


def _subfolders(folder: Folder) -> list[str]:
    with _listing(folder) as entries:
        return sorted(entry.name for entry in entries if not hidden(entry.name) and _is_folder(entry))


# --- which files are images ------------------------------------------------------------------------


def _list_images(split: _Split, classes: list[str]) -> _Found:
    """The images of a split, labelled by their place in `classes`; UserError for a class that is none of them."""
    if extra := sorted(set(split.classes) - set(classes)):
        missing = sorted(set(classes) - set(split.classes))
        lacks = f" lacks {_few(missing)} and" if missing else ""
        raise UserError(
            f"{split.folder} must have the classes of the train folder: it{lacks} has {_few(extra)} besides"
        )
    paths: list[Packed] = []
    unused: list[str] = []
    counts = []
    for name in classes:
        images, others = images_below(split.folder / name) if name in split.classes else ([], [])
        paths.append(Packed.of(images))
        unused += others
        counts.append(len(images))
    if not any(counts):
        raise UserError(f"folder:{split.folder} holds no images: {_LAYOUT}")
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    lacking = [name for name, count in zip(classes, counts, strict=True) if not count]
    return _Found(Packed.joined(paths), labels, lacking, unused)


def images_below(folder: Folder) -> tuple[list[str], list[str]]:
    """Every image below a folder and every other file, both ordered by path."""
    images: list[str] = []
    unclear: list[str] = []
    for path in _files_below(folder):
        (images if _named_image(path) else unclear).append(path)
    # Neither pipes nor broken links are opened.
    unclear = sorted(path for path in unclear if isinstance(folder, RemoteFolder) or os.path.isfile(path))
    reasons = parallel(lambda i: why_no_image(_file(folder, unclear[i])), len(unclear), workers=16)
    images += [path for path, reason in zip(unclear, reasons, strict=True) if reason is None]
    return sorted(images), [path for path, reason in zip(unclear, reasons, strict=True) if reason is not None]


def _file(folder: Folder, path: str) -> str | RemoteFile:
    return folder.file(path) if isinstance(folder, RemoteFolder) else path


def _files_below(folder: Folder) -> Iterator[str]:
    """Every file below a folder; a folder that links lead to again is read once."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        with _listing(current) as entries:
            if isinstance(current, Path):
                status = os.stat(current)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            for entry in entries:
                if hidden(entry.name):
                    continue
                if _is_folder(entry):
                    waiting.append(current / entry.name)
                # Broken links count, to be reported as unreadable; pipes and devices do not.
                elif entry.is_symlink() or entry.is_file():
                    yield entry.path


@contextmanager
def _listing(folder: Folder) -> Iterator[Iterator[os.DirEntry[str] | Entry]]:
    if isinstance(folder, RemoteFolder):
        yield folder.entries()
        return
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from None


def _files(folder: Folder) -> list[str]:
    with _listing(folder) as entries:
        return sorted(entry.path for entry in entries if not hidden(entry.name) and not _is_folder(entry))


def _named_image(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS)


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is the system's."""
    return name.startswith(".") or name.lower() in _SYSTEM


def _is_folder(entry: os.DirEntry[str] | Entry) -> bool:
    # A link may lead to itself, at which `is_dir` raises.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
