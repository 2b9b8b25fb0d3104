"""How often a test set was looked at: each look lets a choice be made on it, and wears it out."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from jaxtrain.errors import DamagedError
from jaxtrain.files import file_lock, optional, replacing
from jaxtrain.readers import read_json

_log = logging.getLogger(__name__)


def count_look(
    path: Path, test_digest: str, params_sha256: str, dataset: str, setting: tuple[str, str] | None = None
) -> int | None:
    """Note that a model was measured on a test set; return how many different ones were, this one too.

    The same parameters measured again tell nothing new and are not counted again, so a run that was killed
    and continued counts once. `path` is a JSON file, shared by all runs of a working directory:
    `{test digest: {"dataset": name, "params_sha256": [digest of each model], "sweeps": {folder: [setting]}}}`;
    `setting` is (folder, setting) of a run of a sweep. None, with a warning, where it cannot be written: a count never
    costs a run its result.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path.with_name(path.name + ".lock")):
            table = _read(path)
            entry = table.setdefault(test_digest, {"dataset": dataset, "params_sha256": []})
            before = json.dumps(entry)
            lists = [(entry["params_sha256"], params_sha256)]
            if setting is not None:
                lists.append((entry.setdefault("sweeps", {}).setdefault(setting[0], []), setting[1]))
            for known, one in lists:
                if one not in known:
                    known.append(one)
            if json.dumps(entry) != before:
                with replacing(path) as part:
                    part.write_text(json.dumps(table, indent=1) + "\n")
            return len(entry["params_sha256"])
    except OSError as error:
        _log.warning("looks at the test set are not counted: %s", error)
        return None


def settings_measured(path: Path, test_digest: str) -> dict[str, int]:
    """How many settings of each sweep, by its folder, `count_look` has counted on a test set."""
    with optional("the count of looks by sweep"):
        return {folder: len(known) for folder, known in _read(path).get(test_digest, {}).get("sweeps", {}).items()}
    return {}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The table; one that is damaged is set aside."""
    try:
        table = read_json(path, "count of looks")
        if not all(isinstance(entry["params_sha256"], list) for entry in table.values()):
            raise ValueError("no lists of digests")
        return table
    except FileNotFoundError:
        return {}
    except (DamagedError, KeyError, TypeError, ValueError):
        aside = path.with_name(path.name + ".damaged")
        os.replace(path, aside)
        _log.warning("%s was damaged; it is now %s, and counting starts again", path, aside.name)
        return {}
