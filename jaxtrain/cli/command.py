"""Command lines from models: a command is a pydantic model, and its fields are its options.

Names, types, defaults, limits and the text of `--help` come from the fields, and pydantic validates the values, so that
a wrong one is refused in the words that a YAML file would get. Nothing heavy is imported here.
"""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from jaxtrain.config import Section
from jaxtrain.config_io import explain, nearest_option
from jaxtrain.errors import UserError, nearest
from jaxtrain.screen.program import command as command_line

_HELP = {"-h", "--help"}
_TRUTH = {"true", "false", "none"}


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
        given = _read(options_of(cls), words)
        below = cls.below(given)
        _require(options_of(cls), given)
        try:
            return cls.model_validate(merge(below, given))
        except ValidationError as error:
            raise UserError(explain(error, "command line")) from None

    def run(self) -> None:
        """Do it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Group:
    """Commands under one name."""

    summary: str
    commands: Mapping[str, type[Command] | Group]


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
    print(_group_help(what, path) if isinstance(what, Group) else _help(what, path))
    raise SystemExit(0)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, the values of `above` winning."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


@dataclass(frozen=True)
class Option:
    """One option of a command."""

    path: str
    field: FieldInfo

    @property
    def kinds(self) -> list[Any]:
        """The types that its value may have."""
        return list(_kinds(self.field.annotation))

    @property
    def place(self) -> str | None:
        """What it is called, where it is given by its place."""
        return next((str(mark) for mark in self.field.metadata if isinstance(mark, Positional)), None)

    @property
    def flag(self) -> str:
        """What it is called on the command line."""
        return self.place or f"--{self.path.replace('_', '-')}"

    @property
    def takes_many(self) -> bool:
        """Whether it takes a list."""
        return any(get_origin(kind) is tuple for kind in self.kinds)

    def value(self, texts: Sequence[str]) -> Any:
        """What pydantic is to validate."""
        if texts == ["None"] and NoneType in self.kinds:
            return None
        values = [self._choices().get(text, text) for text in texts]
        return values if self.takes_many else values[0]

    def expected(self) -> str:
        """What values it takes, for help."""
        if choices := self._choices():
            return "|".join(choices)
        kind = next(kind for kind in self.kinds if kind is not NoneType)
        if kind is bool:
            return "[True|False]"
        if get_origin(kind) is tuple:
            kind = next(_kinds(get_args(kind)[0]))
        return f"{'|'.join(map(str, get_args(kind))) or kind.__name__.upper()}{' ...' if self.takes_many else ''}"

    def _choices(self) -> dict[str, Any]:
        return {str(one): one for kind in self.kinds if get_origin(kind) is Literal for one in get_args(kind)}


def options_of(model: type[Section], prefix: str = "") -> dict[str, Option]:
    """Every option of a command by its path, those of sections among them: `seed`, `train.epochs`, ..."""
    found: dict[str, Option] = {}
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        section = _section(field)
        found |= {path: Option(path, field)} if section is None else options_of(section, f"{path}.")
    return found


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


def _read(options: Mapping[str, Option], words: Sequence[str]) -> dict[str, Any]:
    """What the words give, as nested dicts; of an option that is given twice, the last."""
    tree: dict[str, Any] = {}
    loose: list[str] = []
    waiting = deque(words)
    while waiting:
        word = waiting.popleft()
        if not _is_flag(word):
            loose.append(word)
            continue
        flag, equals, value = word.partition("=")
        option = _named(options, flag)
        texts = [value] if equals else _following(option, waiting)
        _put(tree, option.path, option.value(texts))
    for option in options.values():
        if option.place is not None and loose:
            taken = len(loose) if option.takes_many else 1
            _put(tree, option.path, option.value(loose[:taken]))
            loose = loose[taken:]
    if loose:
        raise UserError(f"{loose[0]}: belongs to no option")
    return tree


def _is_flag(word: str) -> bool:
    if not word.startswith("-") or word == "-":
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False


def _named(options: Mapping[str, Option], flag: str) -> Option:
    if not flag.startswith("--"):
        raise UserError(f"{flag}: no such option; options start with two dashes, --help lists them")
    path = flag[2:].replace("-", "_")
    flagged = {path: option for path, option in options.items() if option.place is None}
    if path not in flagged:
        hint = nearest_option(path, list(flagged)).replace("'", "'--", 1).replace("_", "-")
        raise UserError(f"{flag}: no such option; {hint}")
    return flagged[path]


def _following(option: Option, waiting: deque[str]) -> list[str]:
    """Takes the values of an option from the words after it; a switch alone is on."""
    texts: list[str] = []
    switch = bool in option.kinds
    while waiting and not _is_flag(waiting[0]) and (option.takes_many or not texts):
        if switch and waiting[0].lower() not in _TRUTH:
            break
        texts.append(waiting.popleft())
    if not texts and not switch:
        raise UserError(f"{option.flag}: a value is missing")
    return texts or ["True"]


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[key] = value


def _require(options: Mapping[str, Option], given: Mapping[str, Any]) -> None:
    for option in options.values():
        if option.field.is_required() and option.path not in given:
            raise UserError(f"{option.flag} is missing: {option.field.description}")


# --- help -----------------------------------------------------------------------------------------


def _group_help(group: Group, path: Sequence[str]) -> str:
    program = shlex.join(command_line(*path))
    width = max(map(len, group.commands)) + 2
    lines = [f"usage: {program} COMMAND ...", "", group.summary, "", "commands:"]
    for name, what in group.commands.items():
        lines += _wrapped(_paragraphs(what)[0], 2, f"{name:{width}}")
    return "\n".join([*lines, "", f"{program} COMMAND --help lists the options of one."])


def _help(command: type[Command], path: Sequence[str]) -> str:
    options = sorted(options_of(command).values(), key=lambda option: option.place is None)
    places = [_place(option) for option in options if option.place]
    lines = [" ".join(["usage:", shlex.join(command_line(*path)), *places, "[--option VALUE ...]"])]
    for paragraph in _paragraphs(command):
        lines += ["", *_wrapped(paragraph)]
    lines += ["", *_described(option for option in options if "." not in option.path)]
    for name, field in command.model_fields.items():
        section = _section(field)
        if section is not None:
            text = field.description or _paragraphs(section)[0]
            lines += ["", *_wrapped(text, 0, f"{name}: "), *_described(options_of(section, f"{name}.").values())]
    return "\n".join(lines)


def _place(option: Option) -> str:
    shown = f"{option.place} ..." if option.takes_many else f"{option.place}"
    return shown if option.field.is_required() else f"[{shown}]"


def _described(options: Any) -> Iterator[str]:
    for option in options:
        default = option.field.default
        # A list is given as it is typed; what is None, empty or off needs no mention.
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        known = not option.field.is_required() and shown not in ("None", "False", "")
        head = option.flag if option.place else f"{option.flag} {option.expected()}"
        yield from _wrapped(head + (f" (default: {shown})" if known else ""), 2)
        yield from _wrapped(option.field.description or "", 8)


def _paragraphs(what: type[Command] | type[Section] | Group) -> list[str]:
    text = what.summary if isinstance(what, Group) else textwrap.dedent(what.__doc__ or "")
    return [" ".join(part.split()) for part in text.split("\n\n")]


def _wrapped(text: str, indent: int = 0, head: str = "") -> list[str]:
    width = min(shutil.get_terminal_size().columns, 100)
    under = " " * (indent + (len(head) if indent else 0))
    first = " " * indent + head
    plain = " ".join(text.split())
    return textwrap.wrap(plain, width, initial_indent=first, subsequent_indent=under, break_on_hyphens=False)
