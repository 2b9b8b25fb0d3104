"""Command lines from models: a command is a pydantic model, and its fields are its options.

Names, types, defaults, limits and the text of `--help` come from the fields, and pydantic validates the values, so that
a wrong one is refused in the words that a YAML file would get. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from jaxtrain.config import Section
from jaxtrain.config_io import explain, nearest_option
from jaxtrain.errors import UserError


class Positional(str):
    """Annotates a field that is given by its place; the text is what `--help` calls it."""


class Command(Section):
    """What one command does; its docstring and fields are its help."""

    important: ClassVar[Sequence[str]] = ()
    """Options of sections that `--help` describes; the others only where they are asked for. Empty: all."""
    examples: ClassVar[Sequence[str]] = ()
    """Command lines, after the program's name, for the end of `--help`."""

    @classmethod
    def below(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options from elsewhere, over which those of the command line win."""
        return {}

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """The command that the words give. Raises UserError naming the option, the value and what would be valid."""
        options = options_of(cls)
        given = _read(options, words)
        tree = merge(cls.below(given), given)
        for option in options:
            if option.field.is_required() and option.path not in tree:
                raise UserError(f"{option.shown} is missing: {option.field.description}")
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise UserError(explain(error, "command line")) from None

    @classmethod
    def helps(cls, words: Sequence[str]) -> Callable[[str], bool]:
        """Which options `--help` describes, given what else stands on the command line."""
        return lambda path: True

    def run(self) -> None:
        """Do it."""
        raise NotImplementedError


class Group(NamedTuple):
    """Commands under one name."""

    summary: str
    commands: Mapping[str, type[Command] | Group]


class Option(NamedTuple):
    """One option of a command."""

    path: str
    field: FieldInfo
    kinds: list[Any]
    """The types that its value may have."""
    many: bool
    """Whether it takes a list."""
    place: str | None
    """What it is called, where it is given by its place."""

    @property
    def shown(self) -> str:
        """What it is called on the command line."""
        return self.place or f"--{self.path.replace('_', '-')}"


def options_of(model: type[Section], prefix: str = "") -> list[Option]:
    """Every option of a command, those of its sections among them: `seed`, `train.epochs`, ..."""
    found = []
    for name, field in model.model_fields.items():
        path, kinds = f"{prefix}{field.alias or name}", list(kinds_of(field.annotation))
        if section := section_of(field):
            found += options_of(section, f"{path}.")
        else:
            place = next((str(mark) for mark in field.metadata if isinstance(mark, Positional)), None)
            found.append(Option(path, field, kinds, any(get_origin(kind) is tuple for kind in kinds), place))
    return found


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, the values of `above` winning."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a field is, if it is one."""
    kinds = kinds_of(field.annotation)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def kinds_of(annotation: Any) -> Iterator[Any]:
    """The members of a union, without what only limits their values."""
    if get_origin(annotation) is Annotated:
        yield from kinds_of(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from kinds_of(part)
    else:
        yield annotation


# --- from words to values -------------------------------------------------------------------------


def _read(options: Sequence[Option], words: Sequence[str]) -> dict[str, Any]:
    """What the words give, as nested dicts; of an option that is given twice, the last."""
    tree: dict[str, Any] = {}
    loose, waiting = [], deque(words)
    while waiting:
        word = waiting.popleft()
        if _is_flag(word):
            flag, equals, value = word.partition("=")
            option = _named(options, flag)
            _put(tree, option, [value] if equals else _following(option, waiting))
        else:
            loose.append(word)
    for option in options:
        if option.place and loose:
            taken = len(loose) if option.many else 1
            _put(tree, option, loose[:taken])
            loose = loose[taken:]
    if loose:
        raise UserError(f"{loose[0]}: belongs to no option")
    return tree


def _is_flag(word: str) -> bool:
    try:
        float(word)  # a negative number is a value
    except ValueError:
        return word.startswith("-") and word != "-"
    return False


def _named(options: Sequence[Option], flag: str) -> Option:
    path, by_path = flag.lstrip("-").replace("-", "_"), {option.path: option for option in options if not option.place}
    if flag.startswith("--") and path in by_path:
        return by_path[path]
    hint = nearest_option(path, list(by_path)).replace("'", "'--", 1).replace("_", "-")
    if not by_path:
        hint = f"it takes {' and '.join(option.shown for option in options)} alone"
    elif not flag.startswith("--") and not hint.startswith("did"):
        hint = "options start with two dashes, --help lists them"
    raise UserError(f"{flag}: no such option; {hint}")


def _following(option: Option, waiting: deque[str]) -> list[str]:
    """Takes the values of an option from the words after it; a switch alone is on."""
    texts: list[str] = []
    switch = bool in option.kinds
    while waiting and not _is_flag(waiting[0]) and (option.many or not texts):
        if switch and waiting[0].lower() not in ("true", "false", "yes", "no", "on", "off", "none"):
            break
        texts.append(waiting.popleft())
    if not texts and not switch:
        raise UserError(f"{option.shown}: a value is missing")
    return texts or ["True"]


def _put(tree: dict[str, Any], option: Option, texts: Sequence[str]) -> None:
    """Enters what pydantic is to validate."""
    *sections, key = option.path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    choices = choices_of(option)
    values = [choices.get(text, text) for text in texts]
    tree[key] = values if option.many else values[0]
    if texts == ["None"] and NoneType in option.kinds:
        tree[key] = None


def choices_of(option: Option) -> dict[str, Any]:
    """The values that it may have, by what they are called, where they are a few words."""
    return {str(one): one for kind in option.kinds if get_origin(kind) is Literal for one in get_args(kind)}
