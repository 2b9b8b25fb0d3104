"""A process that has imported all and forks one child a run: commands that start in a moment, to be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_IMPORTS = (
    "jaxtrain.classifiers.files", "jaxtrain.runs.stepwise", "jaxtrain.runs.run", "jaxtrain.tracking",
    "jaxtrain.evaluation.evaluate", "jaxtrain.data.sources", "jaxtrain.screen.console", "orbax.checkpoint",
    "sklearn.datasets", "matplotlib.pyplot", "rich.progress", "jaxtrain.cli.main",
)  # fmt: skip


class Nursery:
    """Runs `jaxtrain train` with arguments, in a folder."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
        command = [sys.executable, "-W", "ignore", str(Path(__file__))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def run(self, arguments, folder: Path, kill_at: int | None = None, seconds: float | None = None) -> dict[str, Any]:
        """Exit status (negative: the signal), output, and file operations in the run directory so far.

        kill_at: kill -9 just before that file operation; seconds: after so long.
        """
        order = {"arguments": arguments, "folder": str(folder), "kill_at": kill_at, "seconds": seconds}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def _child(order: dict[str, Any], out: Path) -> None:
    os.setsid()
    log = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(order["folder"])
    arguments, counter = order["arguments"], Path(f"{out}.count")
    run_dir = str(Path(order["folder"], arguments[arguments.index("--run-dir") + 1]))
    done, told = 0, os.open(counter, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def audit(event: str, args: Any) -> None:
        nonlocal done
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            return
        if not str(args[0]).startswith(run_dir) or (event == "open" and not (args[2] & 3)):
            return
        done += 1
        os.pwrite(told, str(done).encode(), 0)
        if done == order["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    sys.argv = ["jaxtrain", "train", *arguments]
    from jaxtrain.cli.main import main

    main()


def _serve() -> None:
    import importlib

    for name in _IMPORTS:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        out = Path(order["folder"], f"out-{time.monotonic_ns()}")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _child(order, out)
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                import atexit

                atexit._run_exitfuncs()
                os._exit(code)
        if order["seconds"] is not None:
            time.sleep(order["seconds"])
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        counter = Path(f"{out}.count")
        count = int(counter.read_text() or 0) if counter.exists() else 0
        print(json.dumps({"status": status, "output": out.read_text(), "operations": count}), flush=True)


if __name__ == "__main__":
    _serve()
