"""The program `jaxtrain`: its commands, and how it ends. Nothing heavy is imported here."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from jaxtrain import __version__
from jaxtrain.cli.benchmark import Benchmark
from jaxtrain.cli.command import Group, find
from jaxtrain.cli.embed import EMBED
from jaxtrain.cli.pack import Pack
from jaxtrain.cli.predict import Predict
from jaxtrain.cli.sweep import Sweep
from jaxtrain.cli.sync import Sync
from jaxtrain.cli.train import Recipes, Train
from jaxtrain.errors import JaxtrainError
from jaxtrain.files import disk_refuses, reason
from jaxtrain.training import processes

PROGRAM = Group(
    "Train image classifiers: feature extraction, fine-tuning, pre-training from scratch.",
    {
        "train": Train,
        "predict": Predict,
        "benchmark": Benchmark,
        "sweep": Sweep,
        "embed": EMBED,
        "pack": Pack,
        "sync": Sync,
        "recipes": Recipes,
    },
)


def main(*door: str) -> None:
    """The program as it is started: `jaxtrain` and what follows it; `door`: words that come before those given."""
    guard(lambda: run([*door, *sys.argv[1:]]))


def run(words: Sequence[str]) -> None:
    """Do what a command line asks for. Raises UserError for a wrong one."""
    if list(words) == ["--version"]:
        print(f"jaxtrain {__version__}")
    else:
        find(PROGRAM, words).run()


def guard(body: Callable[[], None]) -> None:
    """Call `body`; an error becomes one line and an exit code (1, 2, 130, 143)."""
    from jaxtrain.screen.console import log_to_stderr, print_error

    log_to_stderr()
    try:
        body()
    except JaxtrainError as error:
        label = "interrupted" if error.exit_code > 128 else "error"
        print_error(str(error), label=label)
        processes.leave(error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print_error("by Ctrl-C; what is finished is kept, and the same command goes on", label="interrupted")
        processes.leave(130)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        processes.leave(1)
        sys.exit(1)
    except Exception as error:
        if disk_refuses(error):
            file = getattr(error, "filename2", None) or getattr(error, "filename", None)
            print_error(f"{file}: {reason(error)}" if file else reason(error))
            processes.leave(1)
            sys.exit(1)
        if processes.count() > 1:
            traceback.print_exc()
            processes.leave(1)
        raise
