"""`--help`, made from the commands: the options that matter first, all of them or one section where asked for."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from types import NoneType
from typing import get_args

from jaxtrain.cli.command import Command, Group, Option, choices_of, kinds_of, options_of, section_of
from jaxtrain.config import Section
from jaxtrain.errors import UserError, nearest
from jaxtrain.screen.program import command as command_line

_HELP = ("-h", "--help")


def find(what: type[Command] | Group, words: Sequence[str], path: Sequence[str] = ()) -> Command:
    """The command that a command line asks for. Prints its help and exits where that is asked for."""
    if isinstance(what, Group):
        name, *rest = words or [""]
        if name in what.commands:
            return find(what.commands[name], rest, [*path, name])
        if name not in _HELP:
            missing = f"{name}: no such command" if name else "a command is missing"
            raise UserError(f"{missing}; {nearest(name, what.commands)}")
        print("\n".join(_group(what, path)))
    elif not set(_HELP) & set(words):
        return what.parse(words)
    else:
        print("\n".join(_command(what, words, path)))
    raise SystemExit(0)


def _group(what: Group, path: Sequence[str]) -> Iterator[str]:
    program = shlex.join(command_line(*path))
    yield from (f"usage: {program} COMMAND ...", "", what.summary, "")
    width = max(map(len, what.commands)) + 2
    for name, command in what.commands.items():
        about = command.summary if isinstance(command, Group) else _paragraphs(command)[0]
        yield from _wrapped(f"{name:{width}}{about}", 2, 2 + width)
    yield from ("", f"{program} COMMAND --help lists the options of one.")


def _command(what: type[Command], words: Sequence[str], path: Sequence[str]) -> Iterator[str]:
    program, acts, topic = shlex.join(command_line(*path)), what.helps(words), _topic(what, words)
    options = [option for option in options_of(what) if acts(option.path)]
    sections = _sections(what, options)
    if topic in sections:
        yield from _section(what, topic, sections[topic])
        return
    plain = [option for option in options if "." not in option.path]
    plain.sort(key=lambda option: option.place is None)
    places = [f"{option.place}{' ...' if option.many else ''}" for option in plain if option.place]
    yield " ".join(["usage:", program, *places, "[--option VALUE ...]"])
    for paragraph in _paragraphs(what):
        yield from ("", *_wrapped(paragraph))
    yield from ("", *_described(plain))
    if topic == "all" or not what.important:
        for name, inside in sections.items():
            yield from ("", *_section(what, name, inside))
    else:
        yield from ("", *_described(option for option in options if option.path in what.important))
        more = f"`--help all` describes all {len(options)} options, `--help NAME` one section: {', '.join(sections)}."
        yield from ("", *_wrapped(more))
    if what.examples:
        yield from (
            "",
            "Examples:",
            *(f"  {shlex.join(command_line(*shlex.split(example)))}" for example in what.examples),
        )


def _topic(what: type[Command], words: Sequence[str]) -> str | None:
    """What help is asked for: `all`, a section, or None."""
    after = next((after for word, after in pairwise(words) if word in _HELP), None)
    if after is None or after.startswith("-"):
        return None
    known = ["all", *_sections(what, options_of(what))]
    if after not in known and what.important:
        raise UserError(f"--help {after}: {nearest(after, known)}")
    return after


def _sections(what: type[Command], options: Iterable[Option]) -> dict[str, list[Option]]:
    found: dict[str, list[Option]] = {name: [] for name, field in what.model_fields.items() if section_of(field)}
    for option in options:
        if "." in option.path:
            found[option.path.partition(".")[0]].append(option)
    return {name: inside for name, inside in found.items() if inside}


def _section(what: type[Command], name: str, inside: Iterable[Option]) -> Iterator[str]:
    field = what.model_fields[name]
    section = section_of(field)
    assert section is not None
    yield from (*_wrapped(f"{name}: {field.description or _paragraphs(section)[0]}"), *_described(inside))


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
    if choices := choices_of(option):
        return "|".join(choices)
    kind = next(kind for kind in option.kinds if kind is not NoneType)
    if option.many:
        kind = next(kinds_of(get_args(kind)[0]))
    name = "|".join(map(str, get_args(kind))) or ("[True|False]" if kind is bool else kind.__name__.upper())
    return f"{name} ..." if option.many else name


def _paragraphs(model: type[Section]) -> list[str]:
    return [" ".join(part.split()) for part in (model.__doc__ or "").split("\n\n")]


def _wrapped(text: str, first: int = 0, others: int = 0) -> list[str]:
    """Lines that fit the terminal, the first and the others indented by a number of columns."""
    width = min(shutil.get_terminal_size().columns, 100)
    return textwrap.wrap(
        text, width, initial_indent=" " * first, subsequent_indent=" " * others, break_on_hyphens=False
    )
