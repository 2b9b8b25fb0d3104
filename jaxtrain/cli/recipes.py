"""`jaxtrain recipes`: the config files that come with the package."""

from __future__ import annotations

import itertools
import re
import shutil
import textwrap

from jaxtrain.cli.command import Command
from jaxtrain.config_io import RECIPES, recipe_names


class Recipes(Command):
    """List the recipes that come with jaxtrain: names that `train --config` and `sweep` take for files."""

    def run(self) -> None:
        """Print the name of each, and the first sentence of its file."""
        names = recipe_names()
        width = max(map(len, names))
        for name in names:
            lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
            comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
            text = " ".join(line.lstrip("# ") for line in comment)
            first = re.split(r"(?<! al)[.?] ", text)[0].rstrip(".")
            room = max(shutil.get_terminal_size().columns - width - 2, 40)
            print(f"{name:{width}}  {textwrap.shorten(first, room, placeholder=' ...')}".rstrip())
