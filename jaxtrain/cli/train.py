"""`jaxtrain train`: from options, in files and on the command line, to one run; `jaxtrain recipes`: the files."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from jaxtrain.cli.command import Command, merge
from jaxtrain.config import TECHNIQUES, Config, GroupConfig, resources
from jaxtrain.config_io import RECIPES, dump_config, find_config, load_config, recipe_names
from jaxtrain.errors import UserError
from jaxtrain.lifeline import follow
from jaxtrain.screen.program import command

_STOP_SECONDS = 20.0
_ACTIONS = ("print_config", "smoke", "debug", "plan")


class Options(Config, Command):
    """The options of a run, and where they come from."""

    technique: Literal["fe", "ft", "pt"] = Field(description=Config.model_fields["technique"].description)
    config: Path | None = None
    """YAML file of options, or the name of a recipe, as `pt/digits` (`jaxtrain recipes` lists them); options on the
    command line win."""
    start: Path | None = Field(None, alias="from")
    """A run whose options (except tracking.uri) are taken and whose weights are the start of another one; options on
    the command line win."""

    @classmethod
    def below(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the run directory, of the run to start from, and of the config file."""
        tree: dict[str, Any] = {}
        if run := given.get("from"):
            stored = find_run_config(Path(run)).model_dump(exclude_unset=True)
            tree = merge(stored, {"model": {"weights": str(run)}})
        if given.get("run_dir") and (file := Path(given["run_dir"]).expanduser() / "config.yaml").is_file():
            tree = merge(tree, load_config(file).model_dump(exclude_unset=True))
        # A run that goes on asks who else names its store; one that starts from a stranger's does not take it over.
        tree.get("tracking", {}).pop("uri", None)
        if given.get("config"):
            tree = merge(tree, load_config(find_config(given["config"])).model_dump(exclude_unset=True))
        length = given.get("train", {}).keys() & {"epochs", "steps"}
        if length and "train" in tree:  # the one that is given takes the place of the other
            tree["train"] = {k: v for k, v in tree["train"].items() if k not in ("epochs", "steps")}
        return tree

    @classmethod
    def helps(cls, words: Sequence[str]) -> Callable[[str], bool]:
        """All options, or those that act under the technique that is given."""
        given = next((after for word, after in pairwise(words) if word == "--technique"), None)
        if given not in TECHNIQUES:
            return lambda path: True
        config = Config.model_validate({"technique": given})
        return lambda path: path.partition(".")[0] not in Config.model_fields or config.acts(path)

    @property
    def options(self) -> Config:
        """The config of the run."""
        given = self.model_dump(include=set(Config.model_fields), exclude_unset=True)
        return Config.model_validate({**given, "technique": self.technique})


class Train(Options):
    """Train an image classifier.

    The same command on the same --run-dir continues a run that was stopped. Options come from, each over the one
    before: defaults, the run directory (when it is resumed), --config, the command line. `--technique fe --help` (or
    ft, pt) describes only those that act under it.
    """

    important = (
        "data.name",
        "data.image_size",
        "data.test_fraction",
        "model.name",
        "model.weights",
        "head.name",
        "finetune.strategy",
        "train.epochs",
        "train.batch_size",
        "optimizer.name",
        "optimizer.learning_rate",
        "augment.policy",
        "parallel.strategy",
        "tracking.uri",
    )
    examples = (
        "train --technique pt",
        "train --technique fe --data.name folder:photos",
        "train --technique ft --data.name csv:photos.csv --model.weights hf:timm/resnet50.a1_in1k --train.epochs 5",
        "train --config pt/digits --run-dir runs/pt/mine",
        "train --from runs/pt/mine --train.epochs 2",
    )

    print_config: bool = False
    """Print the options in force as YAML and exit."""
    smoke: bool = False
    """Run every stage in a few steps on generated images of the right shape, in a temporary directory, and exit."""
    debug: bool = False
    """Train one step on one batch with all shapes and every operation's NaN checked, in a temporary directory, and
    exit."""

    plan: str | None = None
    """Say what the run would take on these chips, as `v5e-16` or `h100`, without having them (see `jaxtrain plan`), and
    exit."""
    cluster: GroupConfig = GroupConfig()
    helper: bool = False
    """Take part in the training of the process that started this one (it gives this option itself)."""

    @model_validator(mode="after")
    def _one_action(self) -> Train:
        asked = [f"--{action.replace('_', '-')}" for action in _ACTIONS if getattr(self, action)]
        if len(asked) > 1:
            raise ValueError(f"{' and '.join(asked)}: give one of them")
        if asked and self.cluster.address is not None:
            raise ValueError(f"{asked[0]} and --cluster.address: give one of them")
        return self

    def run(self) -> None:
        """Train, or do what is asked for in place of it."""
        if self.helper:
            follow(sys.stdin, _stop_with_parent)
        if self.cluster.address is not None:
            self._drive(self.cluster.address)
            return
        from jaxtrain.classifiers.files import TECHNIQUES as CLASSIFIERS

        config = self.options
        if self.plan is not None:
            from jaxtrain.cli.forecast import show

            show(config, self.plan, None, option="--plan", largest=True, json_file=None)
            return
        classifier = CLASSIFIERS[config.technique](config)
        if self.smoke or self.debug:
            from jaxtrain.classifiers.rehearsal import REHEARSALS

            REHEARSALS["smoke" if self.smoke else "debug"](classifier)
        elif self.print_config:
            from jaxtrain.data.sources import load_dataset
            from jaxtrain.training.parallel import check_devices

            check_devices()
            sys.stdout.write(dump_config(classifier.resolve(config, load_dataset(classifier.data_config))))
        else:
            classifier.fit()

    def _drive(self, address: str) -> None:
        """Let workers on the nodes of a cluster train."""
        from jaxtrain.cluster.session import connected
        from jaxtrain.cluster.train import Group, check
        from jaxtrain.screen.console import print_line
        from jaxtrain.training.signals import StopRequest

        config, need = self.options, resources(self.cluster.resources)
        check(config)
        given = {"address": address, "workers": self.cluster.workers, "resources": self.cluster.resources}
        again = [word for name, one in given.items() if one is not None for word in (f"--cluster.{name}", str(one))]
        again = command("train", "--technique", config.technique, "--run-dir", str(config.run_dir), *again)
        words = f"continue with: {shlex.join(again)}"
        say = (lambda text: None) if config.quiet else print_line
        with connected(address) as session, StopRequest(words) as stop:
            session.require(need, "--cluster.resources")
            Group(session, config, need, self.cluster.workers, say, stop, words).train()
        say(f"{config.run_dir} is finished; its figures are in {config.run_dir}/summary.json")


def _stop_with_parent() -> None:
    """As after a SIGTERM; a process that waits for one that is lost hears nothing of that, and is ended."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_STOP_SECONDS)
    os._exit(128 + signal.SIGTERM)


def find_run_config(run: Path) -> Config:
    """The config of a run. Raises UserError where there is none."""
    if not (file := run.expanduser() / "config.yaml").is_file():
        raise UserError(f"--from: {run} is not a run directory: it holds no config.yaml")
    return load_config(file)


class Recipes(Command):
    """List the recipes that come with jaxtrain: names that `train --config` and `sweep` take for files."""

    def run(self) -> None:
        """Print the name of each, and the first line of its file."""
        for name in recipe_names():
            first = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
            print(f"{name:25} {first.lstrip('# ')}")
