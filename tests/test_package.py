"""What the package imports is what it says it needs."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from jaxtrain import __version__

ROOT = Path(__file__).parents[1]
OPTIONAL = {name: [name] for name in ("datasets", "onnx", "onnxruntime", "ray", "tensorboard", "wandb", "xgboost")}
OPTIONAL |= {"pynvml": ["nvidia-ml-py"]}
"""Of extras, which need not be installed here."""
BY_HAND = {"jax2onnx"}
"""Installed without what they ask for, as `--to onnx` and the page on tracking say."""


def imported(source: str) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module))
    return {name.partition(".")[0] for name in names}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "test" for line in lines]
    declared = {normalized(re.match(r"[\w.-]+", line)[0]) for line in (*project["dependencies"], *extras)}
    found = set().union(*(imported(path.read_text()) for path in (ROOT / "jaxtrain").rglob("*.py")))
    distributions = {**packages_distributions(), **OPTIONAL}
    missing = {
        name
        for name in found - set(sys.stdlib_module_names) - {"jaxtrain"} - BY_HAND
        if not declared & {normalized(one) for one in distributions.get(name, [])}
    }
    assert missing == set()


def test_one_version_everywhere() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == __version__
