"""Which output of weights stands for each class of a data set: by names, WordNet ids, places, or a file."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jaxtrain.config_io import read_yaml
from jaxtrain.errors import UserError, nearest
from jaxtrain.models.weights.pretrained import Pretrained
from jaxtrain.readers import read_bytes, read_json, reading

_SYNSET = re.compile(r"n\d{8}")
_HEADS = ("class", "class_name", "name")
"""What the first column of a CSV file may be called."""


class Matched(NamedTuple):
    """Outputs of the weights for the classes of a data set."""

    places: tuple[int, ...]
    """Of each class, in the data set's order."""
    how: str
    """By what they were matched."""


def match_classes(class_names: Sequence[str], pretrained: Pretrained, file: Path | None = None) -> Matched:
    """The output of the weights for each class of a data set, which may be some of theirs.

    By their names, else by WordNet id (of ImageNet-1k, in its usual order), else by place where the weights have no
    names: class names that are numbers are places, others count where there are as many. `file` says it instead.

    Raises UserError for a class that the weights don't have, and for two classes that are one output.
    """
    if file is not None:
        found, how = _of_file(file, class_names, pretrained), f"as {file.name} says"
    else:
        found, how = _matched(class_names, pretrained)
    twice, count = Counter(found).most_common(1)[0]
    if count > 1:
        one, other = [name for name, place in zip(class_names, found, strict=True) if place == twice][:2]
        raise UserError(f"--classes: {one} and {other} are both class {_called(twice, pretrained)} of the weights")
    return Matched(tuple(found), how)


def _matched(class_names: Sequence[str], pretrained: Pretrained) -> tuple[list[int], str]:
    ways: dict[str, Callable[[str], int | None]] = {"name": _by_name(pretrained.class_names or ())}
    if _of_imagenet(pretrained):
        ways["WordNet id"] = _by_synset
    if pretrained.class_names is None:
        outputs = range(pretrained.num_classes)
        if all(name.isascii() and name.isdigit() for name in class_names):
            ways["place"] = lambda name: int(name) if int(name) in outputs else None
        elif len(class_names) == len(outputs) and not any(_SYNSET.match(name) for name in class_names):
            return list(outputs), "by place, as many as there are"
    tried: list[list[int | None]] = []
    for way, place_of in ways.items():
        places = [place_of(name) for name in class_names]
        if None not in places:
            return [place for place in places if place is not None], f"by {way}"
        tried.append(places)
    best = min(tried, key=lambda places: places.count(None))
    lacking = class_names[best.index(None)]
    known, missing = pretrained.class_names, best.count(None)
    which = f"{missing} of the {len(class_names)} classes, such as {lacking!r}," if missing > 1 else f"{lacking!r}"
    has = f"they have {pretrained.num_classes} classes without names" if known is None else nearest(lacking, known)
    raise UserError(f"{which} of the data set: no such class of {pretrained.source}: {has}; --classes FILE maps them")


def _by_name(known: Sequence[str]) -> Callable[[str], int | None]:
    """As written, else without regard to case and underscores, else as the one that has it among its synonyms."""
    exact = {name: place for place, name in enumerate(known)}
    alike, synonyms = (_unique(known, parts) for parts in (lambda name: [name], lambda name: name.split(",")))
    return lambda name: exact.get(name, alike.get(_plain(name), synonyms.get(_plain(name))))


def _unique(known: Sequence[str], parts: Callable[[str], list[str]]) -> dict[str, int]:
    found = [(_plain(part), place) for place, name in enumerate(known) for part in parts(name)]
    counts = Counter(part for part, _ in found)
    return {part: place for part, place in found if counts[part] == 1}


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


@cache
def _synsets() -> dict[str, int]:
    """WordNet ids of ImageNet-1k, by place."""
    text = Path(__file__).with_name("imagenet_1k.txt").read_text()
    return {synset: place for place, synset in enumerate(text.split())}


def _by_synset(name: str) -> int | None:
    found = _SYNSET.match(name)
    return None if found is None else _synsets().get(found[0])


def _of_imagenet(pretrained: Pretrained) -> bool:
    """Whether the outputs are those of ImageNet-1k: as many without names, or with its own."""
    names = pretrained.class_names
    return pretrained.num_classes == 1000 and (names is None or names[0].casefold().startswith("tench"))


def _called(place: int, pretrained: Pretrained) -> str:
    return str(place) if pretrained.class_names is None else f"{pretrained.class_names[place]!r}"


# --- from a file


def _of_file(file: Path, class_names: Sequence[str], pretrained: Pretrained) -> list[int]:
    given = _read(file)
    if unknown := [name for name in given if name not in class_names]:
        raise UserError(f"{file}: the data set has no class {unknown[0]!r}: {nearest(unknown[0], class_names)}")
    if missing := [name for name in class_names if name not in given]:
        raise UserError(f"{file}: says nothing of {len(missing)} classes of the data set, such as {missing[0]!r}")
    by_name = _by_name(pretrained.class_names or ())
    places = []
    for name in class_names:
        value = given[name]
        place = by_name(value)
        if place is None and _of_imagenet(pretrained):
            place = _by_synset(value)
        if place is None and value.isascii() and value.isdigit() and int(value) < pretrained.num_classes:
            place = int(value)
        if place is None:
            known = pretrained.class_names or (f"0 to {pretrained.num_classes - 1}",)
            raise UserError(f"{file}: {pretrained.source} has no class {value!r}: {nearest(value, known)}")
        places.append(place)
    return places


def _read(file: Path) -> dict[str, str]:
    kinds: dict[str, Callable[[Path], dict[str, Any]]] = {
        ".json": lambda path: read_json(path, "mapping of classes", "correct it"),
        ".csv": _read_csv,
        **dict.fromkeys((".yaml", ".yml"), lambda path: read_yaml(path, "cat: tabby")),
    }
    if file.suffix not in kinds:
        raise UserError(f"--classes {file}: is none of {', '.join(kinds)}")
    try:
        tree = kinds[file.suffix](file)
    except FileNotFoundError:
        raise UserError(f"--classes: there is no {file}") from None
    for key, value in tree.items():
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise UserError(f"{file}: {key!r}: must be the name or the number of one class")
    return {str(key): str(value) for key, value in tree.items()}


def _read_csv(file: Path) -> dict[str, Any]:
    """Two columns, whose first row may be their names."""
    data = read_bytes(file, 1 << 24)
    with reading(file, "CSV file", "correct it"):
        rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")) if row]
        if rows and rows[0][0].strip().lower() in _HEADS:
            del rows[0]
        found: dict[str, Any] = {}
        for row in rows:
            if len(row) != 2:
                raise ValueError(f"a row of {len(row)} columns: write the data set's class, then the weights'")
            if row[0].strip() in found:
                raise ValueError(f"{row[0].strip()!r} twice")
            found[row[0].strip()] = row[1].strip()
        return found
