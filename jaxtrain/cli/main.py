"""Command lines: from arguments to a Config, and from errors to exit codes. Nothing heavy is imported here."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jaxtrain.config import Config
from jaxtrain.config_io import dump_config, explain, load_config, option_paths
from jaxtrain.errors import JaxtrainError, UserError, nearest
from jaxtrain.training import processes


class TrainCommand(Config):
    """Train an image classifier: train.py --technique pt [--config FILE.yaml] [--section.option VALUE ...]

    The same command on the same --run-dir continues a run that was stopped.
    """

    config: Path | None = None
    """YAML file of options; those on the command line win."""
    print_config: bool = False
    """Print the options in force as YAML and exit."""
    smoke: bool = False
    """Run every stage in a few steps on generated images of the right shape, in a temporary directory, and exit."""
    debug: bool = False
    """Train one step on one batch with all shapes and every operation's NaN checked, in a temporary directory, and
    exit."""


ACTIONS = ("print_config", "smoke", "debug")
"""What can be done with a config in place of a run."""


def train_command(argv: Sequence[str]) -> tuple[Config, str | None]:
    """The config that a command line asks for, and which of `ACTIONS` to do with it; None: the run.

    Options come from, each over the one before: defaults, the run directory's config.yaml (when it is resumed),
    --config, the command line. Raises UserError naming the option, the value and what would be valid.
    """
    arguments = list(argv)
    _check_names(arguments)
    arguments = _spelled_out(arguments)
    given = _pairs(arguments)
    tree: dict[str, Any] = {}
    run_dir = given.get("run_dir")
    if run_dir and (stored := Path(run_dir[0]).expanduser() / "config.yaml").is_file():
        tree = load_config(stored).model_dump(exclude_unset=True)
    if given.get("config"):
        tree = merge(tree, load_config(Path(given["config"][0])).model_dump(exclude_unset=True))
    command = _parse(arguments, given, tree)
    if "technique" not in given and "technique" not in tree:
        raise UserError("--technique is missing; valid: fe, ft, pt")
    actions = [action for action in ACTIONS if getattr(command, action)]
    if len(actions) > 1:
        raise UserError(f"{' and '.join(f'--{action}' for action in actions)}: give one of them")
    options = command.model_dump(exclude={"config", *ACTIONS})
    return Config.model_validate(options), actions[0] if actions else None


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, the values of `above` winning."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def main(body: Callable[[], None]) -> None:
    """Run a script's body and turn errors into one line and an exit code (0, 1, 2, 130, 143)."""
    from jaxtrain.screen.console import log_to_stderr, print_error

    log_to_stderr()
    try:
        body()
    except JaxtrainError as error:
        from jaxtrain.redact import redact

        label = "interrupted" if error.exit_code > 128 else "error"
        print_error(redact(str(error)), hint=getattr(error, "hint", None), label=label)
        processes.leave(error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print_error("by Ctrl-C; nothing was begun that could be continued", label="interrupted")
        processes.leave(130)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        processes.leave(1)
        sys.exit(1)
    except Exception:
        if processes.count() > 1:
            traceback.print_exc()
            processes.leave(1)
        raise


def print_config(config: Config) -> None:
    """As YAML on standard output."""
    sys.stdout.write(dump_config(config))


def parse(command: Any, arguments: Sequence[str], **options: Any) -> Any:
    """As `tyro.cli`; what it refuses is a UserError of one line."""
    try:
        return _tyro(command, arguments, **options)
    except _RefusedError as refused:
        raise UserError(str(refused)) from None


class _RefusedError(Exception):
    """What the parser printed, in one line."""


def _tyro(command: Any, arguments: Sequence[str], **options: Any) -> Any:
    import tyro

    captured = io.StringIO()
    helps = {"-h", "--help"} & set(arguments)
    with contextlib.ExitStack() as stack:
        if not helps:
            stack.enter_context(contextlib.redirect_stdout(captured))
            stack.enter_context(contextlib.redirect_stderr(captured))
        try:
            return tyro.cli(command, prog=Path(sys.argv[0]).name, args=list(arguments), **options)
        except SystemExit:
            if helps:
                raise
    raise _RefusedError(_one_line(captured.getvalue()))


def _one_line(printed: str) -> str:
    """What matters of a message in a frame: parts between rules, after the title and before where to find help."""
    lines = [line.strip("│╭╮╰╯─ ") for line in printed.splitlines()]
    parts = [" ".join(part.split()) for part in re.split(r"\n(?:-{9,})?\n", "\n".join(lines))]
    dull = ("For full helptext", "Argument helptext", "Got errors")
    told = [part.removesuffix(".") for part in parts[1:] if part and not part.startswith(dull)]
    return "; ".join(told[:2]) or " ".join(parts)


def _parse(arguments: list[str], given: Mapping[str, list[str]], tree: Mapping[str, Any]) -> TrainCommand:
    import tyro

    try:
        default = TrainCommand.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, "config")) from None
    try:
        return _tyro(TrainCommand, arguments, default=default, config=(tyro.conf.FlagConversionOff,))
    except _RefusedError as refused:
        raise UserError(_diagnosis(given, tree, str(refused))) from None


def _diagnosis(given: Mapping[str, list[str]], tree: Mapping[str, Any], printed: str) -> str:
    """One line for what the parser refused: the same words as for a YAML file with these values."""
    overrides: dict[str, Any] = {}
    for path, values in given.items():
        *sections, key = path.split(".")
        node = overrides
        for section in sections:
            node = node.setdefault(section, {})
        if not values:
            return f"--{path}: a value is missing"
        plain: list[Any] = [None if value == "None" else value for value in values]
        node[key] = plain if len(plain) > 1 else plain[0]
    try:
        TrainCommand.model_validate(merge(tree, overrides))
    except ValidationError as error:
        return explain(error, "command line")
    return printed


def _check_names(arguments: Sequence[str]) -> None:
    valid = {*option_paths(), "config", *ACTIONS, "help"}
    for argument in arguments:
        if argument.startswith("--"):
            name = argument[2:].split("=")[0]
            if name.replace("-", "_") not in valid:
                hint = nearest(name.replace("-", "_"), valid).replace("'", "'--", 1)
                raise UserError(f"--{name}: no such option; {hint}")
        elif argument.startswith("-") and argument != "-h" and not _number(argument):
            raise UserError(f"{argument}: no such option; options start with two dashes, --help lists them")


def _spelled_out(arguments: list[str]) -> list[str]:
    """With the value that an action given alone (`--smoke`) has."""
    spelled: list[str] = []
    for argument, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        alone = argument[2:].replace("-", "_") in ACTIONS and following.startswith("-")
        spelled += [argument, "True"] if argument.startswith("--") and alone else [argument]
    return spelled


def _pairs(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Option paths with the values that follow them."""
    pairs: dict[str, list[str]] = {}
    values: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            values = pairs.setdefault(name.replace("-", "_"), [])
            values.clear()
            if equals:
                values.append(value)
        else:
            values.append(argument)
    return pairs


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
