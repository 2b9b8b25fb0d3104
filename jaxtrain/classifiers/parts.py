"""Parts of one's own: a class, a network, a loss, an optimizer, metrics, callbacks; and how a run records them.

Configs and saved models name classes and functions by import path (`package.module:Name`), so that resuming, loading
and sweeps find them again.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import getattr_static
from types import BuiltinFunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.errors import UserError

Metric = Callable[[NDArray[np.float32], NDArray[np.int32]], float]
"""From logits `float32[images, classes]` and labels `int32[images]` of all readable validation images."""


@dataclass(frozen=True)
class Parts:
    """What a person gave besides options; None: jaxtrain's own, or what the config names."""

    network: Any = None
    loss: Callable[..., Any] | None = None
    optimizer: Any = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    callbacks: Sequence[Any] = ()

    def __post_init__(self) -> None:
        for name in ("network", "loss"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise UserError(f"{name}: a {type(getattr(self, name)).__name__} is not a function or class")
        for name, metric in self.metrics.items():
            if not name.startswith("val/") or not callable(metric):
                raise UserError(f"metrics: {name!r}: give functions by names that begin with val/, as 'val/macro_f1'")

    def recorded(self, options: Mapping[str, Any], kind: type) -> dict[str, Any]:
        """Options of a config with the import paths of these parts, and of the class that trains."""
        tree = {key: dict(value) if isinstance(value, Mapping) else value for key, value in options.items()}
        own = {"loss": self.loss, "optimizer": self.optimizer}
        base = next(one for one in kind.__mro__ if one.__module__.startswith("jaxtrain."))
        own["classifier"] = None if kind is base else kind
        paths: dict[str, Any] = {name: import_path(part) for name, part in own.items() if part is not None}
        if kind is not base:
            public = [name for name in dir(base) if not name.startswith("_")]
            changed = (name for name in public if getattr_static(kind, name) is not getattr_static(base, name))
            paths["overrides"] = tuple(changed)
        if paths:
            tree["own"] = {**tree.get("own", {}), **paths}
        if self.network is not None:
            tree["model"] = {**tree.get("model", {}), "network": import_path(self.network)}
        return tree


def import_path(part: Any) -> str:
    """`module:name` of a class or function; of another object that of its class."""
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}:{named.__qualname__}"


def find(path: str, option: str, advice: str, *, trusted: bool = True) -> Any:
    """The class or function at an import path. Raises UserError of one line, with `advice`, where there is none.

    One that is not trusted, because a file alone names it, is looked up in modules that are imported already: to import
    is to execute. Functions that are not written in Python, such as `os._exit`, are not networks.
    """
    module, _, names = path.partition(":")
    if not trusted and module not in sys.modules:
        raise UserError(f"{option}: a file names {path}, which is not imported; if you trust it, {advice}")
    try:
        found: Any = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except Exception as error:  # whatever the module does when it is imported
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{option}: {path} cannot be imported ({what}); {advice}") from None
    if not callable(found) or (not trusted and isinstance(found, BuiltinFunctionType)):
        raise UserError(f"{option}: {path} is neither a class nor a function; {advice}")
    return found
