"""The directory of one run: made or found again, locked, with its config and its summary."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from jaxtrain.config import FREE_ON_RESUME, Config, put
from jaxtrain.config_io import dump_config, explain, load_config
from jaxtrain.errors import RunError, UserError
from jaxtrain.files import open_lock, run_name, take_lock, temporary_name, write_text
from jaxtrain.readers import json_object, read_json, reading
from jaxtrain.runs.resolve import shared_steps
from jaxtrain.training.checkpoints import Checkpoints

LOCK, _CONFIG, _DATA = "run.lock", "config.yaml", "data.json"
_OF_A_START = {LOCK, _CONFIG, _DATA, "weights.json", "error.log"}
"""Files of a run that has done nothing yet."""
_LENGTH = {"train.epochs", "train.steps"}
_log = logging.getLogger(__name__)


class Summary(BaseModel):
    """What `summary.json` holds at least, once a run is complete; NaN and infinity become null."""

    model_config = ConfigDict(extra="allow", ser_json_inf_nan="null")

    technique: str
    model: str
    dataset: str
    classes: int
    steps: int
    wall_seconds: float
    images_per_second: float
    val_accuracy: float | None
    test_accuracy: float | None
    test_loss: float | None
    best_step: int | None
    params: int
    trainable_params: int
    params_sha256: str
    mlflow_run_id: str | None
    devices: list[str]
    versions: dict[str, str]


class RunDirectory:
    """A run directory that this process holds; leave it with `close` or as a context manager."""

    def __init__(self, path: Path, *, named_here: bool = False) -> None:
        """Locks an existing directory; use `open`."""
        self.path = path
        self._named_here = named_here
        self._lock = _Lock(path)

    @classmethod
    def open(cls, config: Config, default_name: str) -> RunDirectory:
        """Makes or finds the directory, takes its lock and checks that it is a run's.

        `config.run_dir`, else `runs/<technique>/<config.name>`, else `runs/<technique>/<default_name>-<n>`
        with the first free n.

        Raises:
            UserError: it cannot be written, another process holds it, or it holds something else.
        """
        if config.run_dir is not None or config.name is not None:
            path = config.run_dir or Path("runs", config.technique, str(config.name))
            path = path.expanduser().absolute()
            _make(path)
            _refuse_foreign(path)
            return cls(path)
        parent = Path("runs", config.technique).absolute()
        _make(parent)
        for number in itertools.count(1):
            path = parent / f"{run_name(default_name)}-{number}"
            with contextlib.suppress(FileExistsError):
                _make(path, new=True)
                return cls(path, named_here=True)
        raise AssertionError

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(refused=kind is not None and issubclass(kind, UserError))

    @property
    def config_path(self) -> Path:
        """The resolved config."""
        return self.path / _CONFIG

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Every logged metric, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """The result, when there is one."""
        return self.path / "summary.json"

    @property
    def stacks(self) -> Path:
        """What every thread did when the run stood still."""
        return self.path / "stacks.txt"

    def continued(self, given: Config) -> Config:
        """`given`, with what it leaves open (not set, None or "auto") as in the config of the run so far.

        So is `train.accumulate` where `train.microbatch` has raised it.

        Raises:
            UserError: the two contradict each other; each option that differs is named with its old and new value.
        """
        if not self.config_path.exists():
            return given
        begun = load_config(self.config_path)
        tree, new = {**begun.model_dump(), "quiet": given.quiet}, _options(given, given_only=True)
        new = {
            path: value
            for path, value in new.items()
            if value is not None and (value != "auto" or path == "train.microbatch")
        }
        for path, value in new.items():
            put(tree, path, value)
            if path == "train.steps":
                tree["train"]["epochs"] = None
            elif path == "train.epochs":
                tree["train"]["steps"] = None
        if tree["train"]["microbatch"] == "auto":
            tree["train"]["accumulate"] = max(begun.train.accumulate, tree["train"]["accumulate"])
        try:
            return Config.model_validate(tree)
        except ValidationError as error:
            old = _options(begun)
            changed = [path for path, value in new.items() if old[path] != value and not _is_free(path)]
            refusal = self._refusal(changed, old, new) if changed else explain(error, str(self.config_path))
            raise UserError(refusal) from None

    def check_config(self, resolved: Config, images: int) -> bool:
        """Writes the config of a new run (False), or checks that it is that of the run so far (True).

        A longer one goes on where the schedule lets the steps so far be the same; `images` is the number of training
        images.

        Raises:
            UserError: options differ that decide what is learned; each is named with its old and new value.
        """
        resuming = self.config_path.exists()
        if resuming:
            begun = load_config(self.config_path)
            old, new = _options(begun), _options(resolved)
            changed = [
                path for path in new if old[path] not in (new[path], "auto") and not _is_free(path)
            ]  # an earlier version left some as auto
            if set(changed) <= _LENGTH and changed and (shared := shared_steps(begun, resolved, images)) is not None:
                self._lengthen(shared)
            elif changed:
                raise UserError(self._refusal(changed, old, new))
        text = dump_config(resolved)
        if not resuming or self.config_path.read_text(encoding="utf-8") != text:
            write_text(self.config_path, text)
        return resuming

    def _lengthen(self, shared: int) -> None:
        """Has a run, finished or not, go on from a step that the longer run shares with it."""
        if not Checkpoints(self.checkpoints, keep=1).go_back(shared):
            raise UserError(
                f"run directory {self.path} has no checkpoint of step {shared:,} or before, from which a longer run "
                f"could go on; start another from its weights: --from {self.path}"
            )
        self.summary.unlink(missing_ok=True)

    def check_data(self, data: Mapping[str, Any]) -> None:
        """Notes what a new run learns from, or checks that it is the same as in the run so far.

        Raises:
            UserError: it is not; what differs is named with its old and new value.
        """
        path = self.path / _DATA
        if not path.exists():  # a new run, or one that an earlier version began
            write_text(path, json.dumps(data) + "\n")
            return
        old = read_json(path, "record of a run's data")
        changed = [
            f"{what} {_shown(old.get(what))} -> {_shown(new)}" for what, new in data.items() if old.get(what) != new
        ]
        if changed:
            raise UserError(
                f"run directory {self.path} was begun with other data: {', '.join(changed)}; bring the old images and "
                "labels back, or give another --run-dir or --name"
            )

    def record(self, option: str, value: Any) -> None:
        """Notes an option that was chosen after the run began, so that the run goes on with it when it is resumed."""
        write_text(self.config_path, dump_config(load_config(self.config_path).replace(**{option: value})))

    def _refusal(self, changed: list[str], old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
        shown = ", ".join(f"{path} {_shown(old[path])} -> {_shown(new[path])}" for path in changed[:6])
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        why = ""
        if _LENGTH & set(changed):
            why = (
                "; the length of training shapes the learning rate from the first step (except with schedule.name "
                f"constant and wsd): --from {self.path} starts another run from its weights"
            )
        return (
            f"run directory {self.path} was begun with other options: {shown}{more}{why}; give the old ones, "
            f"or another --run-dir or --name (free to change: {', '.join(FREE_ON_RESUME)})"
        )

    def finished(self) -> dict[str, Any] | None:
        """The summary of a run that is complete, else None. Raises DamagedError where it is not a summary."""
        if not self.summary.exists():
            return None
        advice = "delete it and run again to test the model again"
        content = read_json(self.summary, "summary of a run", advice)
        with reading(self.summary, "summary of a run", advice):
            Summary.model_validate(content)
        return content

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Marks the run as complete. Raises RunError where something that `Summary` asks for is missing."""
        try:
            checked = Summary.model_validate(dict(summary))
        except ValidationError as error:
            raise RunError(explain(error, str(self.summary))) from error
        write_text(self.summary, checked.model_dump_json(indent=2) + "\n")

    def close(self, *, refused: bool = False) -> None:
        """Gives the lock back; a directory that was named here and in which nothing was begun goes away.

        refused: a UserError ended the run; then a config alone is nothing.
        """
        with contextlib.suppress(OSError):
            files = {str(path.relative_to(self.path)) for path in self.path.rglob("*") if not path.is_dir()}
            if self._named_here and files <= (_OF_A_START if refused else {LOCK}):
                shutil.rmtree(self.path)
        self._lock.release()


class _Lock:
    """A lock that ends with the process that holds it, however it ends; others are told who it is."""

    def __init__(self, folder: Path) -> None:
        self._descriptor: int | None = None
        try:
            self._descriptor = open_lock(folder / LOCK)
        except OSError as error:
            raise UserError(_unusable(folder, error)) from error
        os.register_at_fork(after_in_child=self.release)  # a forked worker that outlives us must not hold it
        held = take_lock(self._descriptor)
        if held is False:
            owner = self._owner()
            self.release()
            raise UserError(f"run directory {folder} is in use by {owner}; wait for it, or stop it")
        if held is None:
            _log.warning("%s: this file system has no locks; start no second run in it", folder)
        me = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().isoformat(" ", "seconds"),
        }
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(me).encode(), 0)

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _owner(self) -> str:
        assert self._descriptor is not None
        for _ in range(20):  # between taking the lock and writing its name
            with contextlib.suppress(ValueError, KeyError, TypeError):
                owner = json_object(os.pread(self._descriptor, 4096, 0))
                return f"process {int(owner['pid'])} on {owner['host']} since {owner['since']}"
            time.sleep(0.01)
        return "another process"


def _make(path: Path, *, new: bool = False) -> None:
    try:
        if new:
            path.mkdir()
        else:
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if new and isinstance(error, FileExistsError):
            raise
        raise UserError(_unusable(path, error)) from error


def _unusable(path: Path, error: OSError) -> str:
    in_the_way = next((part for part in (path, *path.parents) if part.exists() and not part.is_dir()), None)
    why = f"{in_the_way} is a file" if in_the_way else error.strerror or str(error)
    return f"run directory {path} cannot be written: {why}; choose another with --run-dir"


def _refuse_foreign(path: Path) -> None:
    try:
        entries = list(path.iterdir())
    except OSError as error:
        raise UserError(_unusable(path, error)) from error
    for entry in entries:
        if entry.is_symlink():
            raise UserError(f"{entry} is a symbolic link, which a run does not follow; put the file itself there")
    others = {entry.name for entry in entries} - {LOCK, temporary_name(path / _CONFIG).name}
    if others and _CONFIG not in others:
        raise UserError(
            f"run directory {path} holds other things ({', '.join(sorted(others)[:3])}) and no {_CONFIG}; "
            "choose another with --run-dir"
        )


def _options(config: Config, *, given_only: bool = False) -> dict[str, Any]:
    """Values by dotted path, as JSON has them."""
    flat: dict[str, Any] = {}
    for key, value in config.model_dump(mode="json", exclude_unset=given_only).items():
        flat |= {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _is_free(path: str) -> bool:
    return any(path == free or path.startswith(f"{free}.") for free in FREE_ON_RESUME)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(str, value[:10]))}{', ...' if len(value) > 10 else ''}]"
    if isinstance(value, str) and len(value) == 64:
        return value[:12]  # a digest
    return "(default)" if value is None else str(value)
