"""Config to YAML and back, and what to say when the YAML, or a command line, is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jaxtrain.config import TECHNIQUE_SECTIONS, Config, Section
from jaxtrain.errors import UserError, nearest
from jaxtrain.redact import redact

RECIPES = Path(__file__).with_name("recipes")
"""Folder of the config files that come with the package."""
_SHOWN_ERRORS = 3


def dump_config(config: Config) -> str:
    """YAML of all options but passwords; `load_config` gives an equal config back."""
    tree = without_passwords(config).model_dump(mode="json")
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def without_passwords(config: Config) -> Config:
    """The same, with what is secret in the tracking URI replaced by `***`."""
    uri = config.tracking.uri
    return config if uri is None or redact(uri) == uri else config.replace(**{"tracking.uri": redact(uri)})


def load_config(path: Path) -> Config:
    """The options in a YAML file, defaults for the others; an empty section is as if left out.

    Raises:
        UserError: the file is missing, is no YAML mapping, names an option twice, or has a wrong one.
    """
    return config_from(read_yaml(path, "'train: {epochs: 3}'"), str(path))


def recipe_names() -> list[str]:
    """The config files that come with the package, by the names under which `find_config` finds them: `pt/digits`."""
    return sorted(file.relative_to(RECIPES).with_suffix("").as_posix() for file in RECIPES.glob("*/*.yaml"))


def find_config(name: Path | str, folder: Path = Path()) -> Path:
    """The file of this path (relative to `folder`), else the recipe of this name; UserError where there is neither."""
    file, called = folder / name, str(name).removesuffix(".yaml")
    if called in recipe_names() and not file.is_file():
        return RECIPES / f"{called}.yaml"
    if not file.exists():
        near = nearest(called.removeprefix("configs/"), recipe_names())
        raise UserError(f"{file}: No such file, and no recipe has this name; {near}")
    return file


def config_from(tree: Mapping[str, Any], source: str) -> Config:
    """The config of a mapping as YAML gives it. Raises UserError, with `source` in front, where an option is wrong."""
    sections = {name for name, _ in _sections()}
    options = {key: value for key, value in tree.items() if value is not None or key not in sections}
    try:
        return Config.model_validate(options)
    except ValidationError as error:
        raise UserError(explain(error, source)) from None


def read_yaml(path: Path, example: str) -> dict[str, Any]:
    """The mapping in a YAML file, empty for an empty file; UserError where there is none."""
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise UserError(f"{path}: is no text in UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise UserError(f"{path}:{place} {' '.join(str(error.problem).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must be a mapping of options, as {example}, not {_shown(tree)}")
    return tree


def option_paths() -> list[str]:
    """Every option as on the command line: `seed`, `train.epochs`, ..."""
    sections = dict(_sections())
    paths = [name for name in Config.model_fields if name not in sections]
    return paths + [f"{name}.{key}" for name, section in sections.items() for key in section.model_fields]


def nearest_option(path: str, valid: Sequence[str] | None = None) -> str:
    """The end of an error message about an option that does not exist: the one probably meant, of those of a config.

    >>> nearest_option("lr"), nearest_option("model.batch_size")
    ("did you mean 'optimizer.learning_rate'?", "did you mean 'train.batch_size'?")
    """
    valid = option_paths() if valid is None else valid
    section, _, name = path.rpartition(".")
    for matches in (lambda key: key == name, lambda key: "".join(word[0] for word in key.split("_")) == name):
        found = [option for option in valid if matches(option.rpartition(".")[2])]
        general = [option for option in found if option.partition(".")[0] not in TECHNIQUE_SECTIONS]
        found = general or found
        if len(found) == 1:
            return f"did you mean '{found[0]}'?"
    siblings = [option.rpartition(".")[2] for option in valid if option.rpartition(".")[0] == section]
    if section and siblings:
        return nearest(name, siblings).replace("'", f"'{section}.", 1)
    return nearest(path, valid)


def explain(error: ValidationError, source: str) -> str:
    """One line for wrong options: where they came from, which, what was given, and what would be valid.

    >>> from jaxtrain.config import Config
    >>> try:
    ...     Config.model_validate({"train": {"epoch": 3}})
    ... except ValidationError as error:
    ...     explain(error, "my.yaml")
    "my.yaml: train.epoch: unknown option, did you mean 'train.epochs'?"
    """
    problems = [f"{_path(details['loc'])}{_problem(details)}" for details in error.errors(include_url=False)]
    more = len(problems) - _SHOWN_ERRORS
    shown = "; ".join(problems[:_SHOWN_ERRORS])
    return f"{source}: {shown}" + (f"; and {more} more" if more > 0 else "")


def _sections() -> list[tuple[str, type[Section]]]:
    annotated = ((name, field.annotation) for name, field in Config.model_fields.items())
    return [(name, kind) for name, kind in annotated if isinstance(kind, type) and issubclass(kind, Section)]


def _path(location: tuple[int | str, ...]) -> str:
    names = ".".join(str(part) for part in location if isinstance(part, str))
    indices = "".join(f"[{part}]" for part in location if isinstance(part, int))
    return f"{names}{indices}: " if location else ""


def _problem(details: Mapping[str, Any]) -> str:
    kind, given, message = details["type"], details["input"], str(details["msg"])
    if kind == "extra_forbidden":
        path = ".".join(str(part) for part in details["loc"])
        if isinstance(given, Mapping):
            return f"unknown section, {nearest(path, [name for name, _ in _sections()])}"
        return f"unknown option, {nearest_option(path)}"
    if kind == "literal_error" and isinstance(given, str):
        names = re.findall(r"'([^']*)'", str(details["ctx"]["expected"]))
        if names:
            return f"unknown value '{_cut(given)}', {nearest(given, names)}"
    if kind == "model_type":
        return f"must be a mapping of options, not {_shown(given)}"
    if kind == "missing":
        return "a value is missing"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind == "string_pattern_mismatch" and details["loc"] == ("name",):
        message = "must be 1 to 100 letters, digits, '.', '_' or '-', and begin with a letter or digit"
    message = re.sub(r", (unable to|got a) .*", "", message)
    message = re.sub(r"^(Input|String|Tuple|Value|Keys) should ", "must ", message)
    message = message.replace("Input is not", "must be")
    message = re.sub(r" for <class '[\w.]+'>", "", message).replace("tuple", "list")
    return f"{message}, not {_shown(given)}"


def _shown(value: object) -> str:
    return _cut(f"'{value}'" if isinstance(value, str) else str(value))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


class _Loader(yaml.SafeLoader):
    """Safe, and an option given twice is an error, not the last of the two."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value}: is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)
