"""The program `jaxtrain`: how it starts and how it ends. Next to nothing is imported before it hears of signals."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Callable, Sequence

from jaxtrain.errors import JaxtrainError
from jaxtrain.training import signals


def main(*door: str) -> None:
    """The program as it is started: `jaxtrain` and what follows it; `door`: words that come before those given."""
    # Most objects of JAX, of which there are a million, live to the end: looking at them again costs 6% of a short run.
    gc.set_threshold(20_000, 20, 100)
    try:
        signals.listen()
        _start_threads(24 + 4 * (os.cpu_count() or 1))
    except RuntimeError as error:
        sys.exit(f"error: {error}: there is a limit on processes (ulimit -u, or the container's)")
    guard(lambda: run([*door, *sys.argv[1:]]))


def _start_threads(count: int) -> None:
    """As many as XLA and the libraries around it will: those end the process with a dump where they get none."""
    enough = threading.Event()
    threads = [threading.Thread(target=enough.wait, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    finally:
        enough.set()


def run(words: Sequence[str]) -> None:
    """Do what a command line asks for. Raises UserError for a wrong one."""
    from jaxtrain import __version__
    from jaxtrain.cli.completion import ASKED, candidates
    from jaxtrain.cli.help import find
    from jaxtrain.cli.program import PROGRAM

    if list(words) == ["--version"]:
        print(f"jaxtrain {__version__}")
    elif words and words[0] == ASKED:
        print("\n".join(candidates(PROGRAM, words[1:] or [""])))
    else:
        find(PROGRAM, words).run()


def guard(body: Callable[[], None]) -> None:
    """Call `body`; an error becomes one line and an exit code (1, 2, 129, 130, 143)."""
    from jaxtrain.files import disk_refuses, reason
    from jaxtrain.screen.console import log_to_stderr
    from jaxtrain.training import processes

    log_to_stderr()
    try:
        body()
    except JaxtrainError as error:
        _last_line(str(error), "interrupted" if error.exit_code > 128 else "error")
        processes.leave(error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _last_line("by Ctrl-C; what is finished is kept, and the same command goes on", "interrupted")
        processes.leave(130)
        sys.exit(130)
    except BrokenPipeError:
        _discard(sys.stdout.fileno())
        processes.leave(1)
        sys.exit(1)
    except Exception as error:
        if disk_refuses(error):
            file = getattr(error, "filename2", None) or getattr(error, "filename", None)
            _last_line(f"{file}: {reason(error)}" if file else reason(error), "error")
            processes.leave(1)
            sys.exit(1)
        if processes.count() > 1:
            import traceback

            traceback.print_exc()
            processes.leave(1)
        raise


def _last_line(message: str, label: str) -> None:
    from jaxtrain.screen.console import print_error

    signals.last_words_said()
    with contextlib.suppress(OSError):
        print_error(message, label=label)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a terminal that was closed
            _discard(stream.fileno())


def _discard(descriptor: int) -> None:
    """The reader of our output has gone (`| head`); Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
