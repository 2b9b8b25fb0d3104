"""Command lines from models: a command is a pydantic model, and its fields are its options.

Names, types, defaults, limits and the text of `--help` come from the fields, and pydantic validates the values, so that
a wrong one is refused in the words that a YAML file would get. Nothing heavy is imported here.
"""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Self, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from jaxtrain.config import Section
from jaxtrain.config_io import explain, nearest_option
from jaxtrain.errors import UserError, nearest
from jaxtrain.screen.program import command as command_line

_HELP = {"-h", "--help"}


class Positional(str):
    """Annotates a field that is given by its place; the text is what `--help` calls it."""


class Command(Section):
    """What one command does; its docstring and fields are its help."""

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


def find(what: type[Command] | Group, words: Sequence[str], path: Sequence[str] = ()) -> Command:
    """The command that a command line asks for. Prints its help and exits where that is asked for."""
    if isinstance(what, Group):
        name, *rest = words or [""]
        if name in what.commands:
            return find(what.commands[name], rest, [*path, name])
        if name not in _HELP:
            missing = f"{name}: no such command" if name else "a command is missing"
            raise UserError(f"{missing}; {nearest(name, what.commands)}")
    elif not _HELP & set(words):
        return what.parse(words)
    shown = (lambda path: True) if isinstance(what, Group) else what.helps(words)
    print("\n".join(_help(what, path, shown)))
    raise SystemExit(0)


def options_of(model: type[Section], prefix: str = "") -> list[Option]:
    """Every option of a command, those of its sections among them: `seed`, `train.epochs`, ..."""
    found = []
    for name, field in model.model_fields.items():
        path, kinds = f"{prefix}{field.alias or name}", list(_kinds(field.annotation))
        if section := _section(field):
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


def _section(field: FieldInfo) -> type[Section] | None:
    kinds = _kinds(field.annotation)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The members of a union, without what only limits their values."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
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
    choices = _choices(option)
    values = [choices.get(text, text) for text in texts]
    tree[key] = values if option.many else values[0]
    if texts == ["None"] and NoneType in option.kinds:
        tree[key] = None


def _choices(option: Option) -> dict[str, Any]:
    return {str(one): one for kind in option.kinds if get_origin(kind) is Literal for one in get_args(kind)}


# --- help -----------------------------------------------------------------------------------------


def _help(what: type[Command] | Group, path: Sequence[str], shown: Callable[[str], bool]) -> Iterator[str]:
    program = shlex.join(command_line(*path))
    if isinstance(what, Group):
        yield from (f"usage: {program} COMMAND ...", "", what.summary, "")
        width = max(map(len, what.commands)) + 2
        for name, command in what.commands.items():
            about = command.summary if isinstance(command, Group) else _paragraphs(command)[0]
            yield from _wrapped(f"{name:{width}}{about}", 2, 2 + width)
        yield from ("", f"{program} COMMAND --help lists the options of one.")
        return
    options = [option for option in options_of(what) if shown(option.path)]
    plain = [option for option in options if "." not in option.path]
    plain.sort(key=lambda option: option.place is None)
    places = [f"{option.place}{' ...' if option.many else ''}" for option in plain if option.place]
    yield " ".join(["usage:", program, *places, "[--option VALUE ...]"])
    for paragraph in _paragraphs(what):
        yield from ("", *_wrapped(paragraph))
    yield from ("", *_described(plain))
    for name, field in what.model_fields.items():
        inside = [option for option in options if option.path.startswith(f"{name}.")]
        if inside and (section := _section(field)):
            about = field.description or _paragraphs(section)[0]
            yield from ("", *_wrapped(f"{name}: {about}"), *_described(inside))


def _described(options: Iterable[Option]) -> Iterator[str]:
    for option in options:
        default = option.field.get_default()
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        known = not option.field.is_required() and shown not in ("None", "False", "")
        head = option.shown if option.place else f"{option.shown} {_expected(option)}"
        yield from _wrapped(head + (f" (default: {shown})" if known else ""), 2, 2)
        yield from _wrapped(option.field.description or "", 8, 8)


def _expected(option: Option) -> str:
    """What values it takes."""
    if choices := _choices(option):
        return "|".join(choices)
    kind = next(kind for kind in option.kinds if kind is not NoneType)
    if option.many:
        kind = next(_kinds(get_args(kind)[0]))
    name = "|".join(map(str, get_args(kind))) or ("[True|False]" if kind is bool else kind.__name__.upper())
    return f"{name} ..." if option.many else name


def _paragraphs(model: type[Section]) -> list[str]:
    return [" ".join(part.split()) for part in (model.__doc__ or "").split("\n\n")]


def _wrapped(text: str, first: int = 0, others: int = 0) -> list[str]:
    """Lines that fit the terminal, the first and the others indented by so much."""
    width = min(shutil.get_terminal_size().columns, 100)
    return textwrap.wrap(
        text, width, initial_indent=" " * first, subsequent_indent=" " * others, break_on_hyphens=False
    )
