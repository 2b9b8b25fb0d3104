"""`hf:ORG/NAME[/CONFIG]` and `hf:PATH`: data sets of Hugging Face's library `datasets`."""

from __future__ import annotations

import logging
import os
import ssl
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxtrain.config import DataConfig
from jaxtrain.data.base import Dataset
from jaxtrain.data.objects import joined, open_split
from jaxtrain.data.splits import SPLIT_NAMES, standing_in
from jaxtrain.errors import UserError

_SECONDS = 10.0
_log = logging.getLogger(__name__)


def hf_dataset(config: DataConfig, text: str) -> Dataset:
    """A folder (Parquet files, class folders, or what `save_to_disk` wrote), else a data set of the hub.

    It stays in Arrow's files, which are mapped into memory, and images are decoded when they are read. Image and label
    are the columns of the types Image and ClassLabel, else those with a common name, or as `data.columns` says. A test
    split without labels (-1) is none.

    Raises `UserError` where the library is not installed, or cannot load it, or it is not a set of labelled images.
    """
    if find_spec("datasets") is None:
        raise UserError('data.name: hf needs the library datasets: pip install -e ".[hf]"')
    found = {str(name): part for name, part in _load(text).items()}
    meant = {name: SPLIT_NAMES[name.lower()] for name in found if name.lower() in SPLIT_NAMES}
    if "train" not in standing_in({split: name for name, split in meant.items()}, config.split):
        raise UserError(f"hf:{text} has no split called train; its splits: {', '.join(found)}")
    if others := [name for name in found if name not in meant]:
        _log.warning("hf:%s: splits that are not used: %s", text, ", ".join(others))
    splits = {split: open_split(found[name], where=f"hf:{text} {name}", config=config) for name, split in meant.items()}
    return joined(standing_in(splits, config.split), config)


def _load(text: str) -> dict[str, Any]:
    """The splits by name."""
    import datasets

    path = Path(text).expanduser()
    try:
        if any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
            loaded = datasets.load_from_disk(str(path))
        elif path.is_dir():
            loaded = datasets.load_dataset(str(path))
        else:
            _check_connection()
            organisation, _, rest = text.partition("/")
            name, _, part = rest.partition("/")
            loaded = datasets.load_dataset(f"{organisation}/{name}" if name else organisation, part or None)
    except Exception as error:  # of a dozen kinds, for names, files and networks
        line = " ".join(str(error).split())[:300]
        raise UserError(f"hf:{text} cannot be loaded: {type(error).__name__}: {line}") from None
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _check_connection() -> None:
    """Raises OSError at once where the hub cannot be reached; the library tries for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_SECONDS):
            pass
    except urllib.error.HTTPError:
        return
    except OSError as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # the library has certificates of its own
            raise ConnectionError(
                f"{address}: {reason}; with HF_HUB_OFFLINE=1 what was loaded before is used"
            ) from None
