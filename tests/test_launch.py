"""The files under configs/launch: their syntax, and that each command line in them is one of ours."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from jaxtrain.cli.help import find
from jaxtrain.cli.program import PROGRAM
from jaxtrain.config_io import find_config, recipe_names

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "launch"
FILES = sorted(FOLDER.iterdir())


def scripts(path):
    """The shell scripts of a file: itself, or the texts of a YAML file that start jaxtrain."""
    if path.suffix == ".sbatch":
        return [path.read_text()]
    found, left = [], [*yaml.safe_load_all(path.read_text())]
    while left:
        match left.pop():
            case dict() as tree:
                left += tree.values()
            case list() as items:
                left += items
            case str() as text if "jaxtrain " in text and "pip install" not in text:
                found.append(text)
    return found


def commands(path):
    """What follows `jaxtrain` in each."""
    lines = [
        line
        for script in scripts(path)
        for line in script.replace("\\\n", " ").splitlines()
        if not line.startswith("#")
    ]
    return [shlex.split(found[1]) for line in lines if (found := re.search(r'jaxtrain ([^"|&;]*)', line))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_command_line_is_one_of_ours(path):
    found = commands(path)
    assert len(found) == 1
    (words,) = found
    command = find(PROGRAM, words)
    assert command.run
    name = words[words.index("--config") + 1] if "--config" in words else words[1]
    assert find_config(Path(name)).is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_script_is_valid_shell(path):
    for script in scripts(path):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".yml"], ids=lambda path: path.name)
def test_every_object_of_kubernetes_says_what_it_is(path):
    (tree,) = yaml.safe_load_all(path.read_text())
    assert path.name.startswith("skypilot") or {"apiVersion", "kind", "metadata", "spec"} == set(tree)


def test_they_are_no_recipes():
    assert not [name for name in recipe_names() if name.startswith("launch/")]
