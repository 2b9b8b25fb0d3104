"""The checkpoints of a run: written in the background, verified when read, never half there."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrain.errors import DamagedError, JaxtrainError, RunError, UserError
from jaxtrain.files import reason
from jaxtrain.readers import reading
from jaxtrain.saved_tree import load_tree, read_meta, recover, save_tree
from jaxtrain.trees import Tree, flat_parts, nested_parts

__all__ = ["Checkpoints", "Restored", "load_tree", "save_tree"]

_STEP_NAME = re.compile(r"^[0-9]{8,}$")
_BEST_NAME = re.compile(r"^best-[0-9]{8,}$")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` found."""

    step: int
    state: Tree
    best: Tree | None
    """The inference weights of the best step so far, if the checkpoint refers to any."""
    meta: dict[str, Any]
    """What the caller gave to `save`, as JSON gives it back (tuples are lists)."""


class Checkpoints:
    """The checkpoints of one run: `<step>/` and `best-<step>/` in one folder, written by a background thread.

    A save is written under a temporary name, flushed to the disk and renamed, so a process killed at any
    moment leaves every older checkpoint as it was. Only one process may use the folder: `RunDirectory` holds
    a lock. Call `restore` before the first `save`: it also removes what a killed run left unfinished.
    """

    damaged: list[str]
    """What `restore` could not use, one line each."""

    pinned: int | None = None
    """Step of a checkpoint that stays besides the newest."""

    def __init__(self, directory: Path, *, keep: int) -> None:
        import orbax.checkpoint  # noqa: F401  (half a second: now, not in the middle of training)

        if keep < 1:
            raise UserError(f"checkpoint.keep: must be at least 1, not {keep}")
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._best_of: dict[int, int | None] = {}
        self.damaged = []
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            recover(self._directory)
        except OSError as error:
            raise UserError(f"checkpoints cannot be kept in {directory}: {reason(error)}") from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first; whether it is sound shows when it is restored."""
        return sorted(int(path.name) for path in self._directory.iterdir() if _STEP_NAME.match(path.name))

    def save(self, step: int, state: Tree, meta: Mapping[str, Any], best: tuple[int, Tree] | None = None) -> None:
        """Writes a checkpoint in the background; waits first for the one before it.

        Args:
            step: names the checkpoint; one of the same step is replaced.
            state: host arrays that nobody changes any more.
            meta: JSON values that `restore` gives back, such as the metric history.
            best: step and inference weights of the best step so far; on disk once, while a kept checkpoint
                refers to it.

        Raises:
            RunError: the save before this one failed.
        """
        self.wait()
        text = json.dumps(dict(meta))  # now: the caller may go on changing it
        self._pending = self._thread.submit(self._write, step, state, text, best)

    def wait(self) -> None:
        """Returns when nothing is being written; raises RunError if the last save failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for the save in flight, ends the thread, and raises RunError if that save failed."""
        self._thread.shutdown(wait=True)
        self.wait()

    def go_back(self, step: int) -> bool:
        """Deletes the checkpoints of later steps, where there is one of this step or before: whether there is."""
        steps = self.steps()
        if not steps or steps[0] > step:
            return False
        for later in (one for one in steps if one > step):
            shutil.rmtree(self._path(later))
        return True

    def restore(self) -> Restored | None:
        """The newest sound checkpoint, or None where there never was one.

        Damaged ones that are newer are named in a warning and in `damaged`, and renamed to `<name>.damaged`.

        Raises:
            RunError: all checkpoints are damaged.
        """
        self.wait()
        damaged: dict[Path, str] = {}
        for step in reversed(self.steps()):
            try:
                restored = self._load(step)
            except DamagedError as error:
                damaged[self._path(step)] = str(error)
                continue
            self._set_aside(damaged, step)
            self._prune()
            return restored
        if damaged:
            raise RunError(
                f"no sound checkpoint in {self._directory}: {'; '.join(damaged.values())}. "
                "Bring one back from a copy, or delete that folder to start from step 0"
            )
        self._prune()
        return None

    def _set_aside(self, damaged: Mapping[Path, str], step: int) -> None:
        for path, problem in damaged.items():
            suffixes = ["", *(f"-{n}" for n in range(2, 100))]
            names = (path.with_name(f"{path.name}.damaged{suffix}") for suffix in suffixes)
            try:
                os.rename(path, next(name for name in names if not name.exists()))
            except OSError as error:
                raise RunError(f"{problem}; and it could not be renamed: {reason(error)}") from error
            _log.warning("%s; renamed to *.damaged, going on from step %d", problem, step)
            self.damaged.append(problem)

    def _path(self, step: int) -> Path:
        return self._directory / f"{step:08d}"

    def _best_path(self, step: int) -> Path:
        return self._directory / f"best-{step:08d}"

    def _load(self, step: int) -> Restored:
        path = self._path(step)
        with reading(path, "checkpoint"):
            return self._read(path, step)

    def _read(self, path: Path, step: int) -> Restored:
        state, meta = load_tree(path)
        if meta["step"] != step:
            raise DamagedError(f"{path} is damaged: it holds step {meta['step']}")
        best, best_step = None, meta["best"]
        if best_step is not None:
            best_path = self._best_path(best_step)
            if not best_path.is_dir():
                raise DamagedError(f"{path} is damaged: {best_path.name}, which it refers to, is missing")
            stored, best_meta = load_tree(best_path)
            best = flat_parts(stored)
            if best_meta["best"] != best_step:
                raise DamagedError(f"{best_path} is damaged: it holds step {best_meta['best']}")
        self._best_of[step] = best_step
        return Restored(step, state, best, meta["meta"])

    def _write(self, step: int, state: Tree, meta: str, best: tuple[int, Tree] | None) -> None:
        best_step = None if best is None else best[0]
        if best is not None and not self._best_path(best[0]).exists():
            save_tree(self._best_path(best[0]), nested_parts(best[1]), {"best": best[0]})
        save_tree(self._path(step), state, {"step": step, "best": best_step, "meta": json.loads(meta)})
        self._best_of[step] = best_step
        self._prune()

    def _prune(self) -> None:
        """Deletes all but the newest checkpoints, and every best that none of the kept ones refers to."""
        steps = self.steps()
        kept = {*steps[-self._keep :], self.pinned}
        wanted = {self._refers_to(step) for step in steps if step in kept}
        bests = [path for path in self._directory.iterdir() if _BEST_NAME.match(path.name)]
        try:
            for step in steps:
                if step not in kept:
                    shutil.rmtree(self._path(step))
            for path in bests:
                if int(path.name.removeprefix("best-")) not in wanted:
                    shutil.rmtree(path)
        except OSError as error:
            problem = f"an old checkpoint in {self._directory} could not be deleted: {reason(error)}"
            raise RunError(problem) from error

    def _refers_to(self, step: int) -> int | None:
        if step not in self._best_of:
            try:
                self._best_of[step] = read_meta(self._path(step))["best"]
            except (JaxtrainError, OSError):
                self._best_of[step] = None
        return self._best_of[step]
