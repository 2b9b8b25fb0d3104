"""The unreadable images of a run, whatever split they are in and whoever meets them: named once, counted, limited."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from jaxtrain.errors import RunError

_SHOWN = 20
_log = logging.getLogger(__name__)


class BadImages:
    """Images that could not be read and were skipped. Each is named in a warning when it is first met."""

    def __init__(self, allowed: int | None = 0, *, named: bool = True) -> None:
        """`allowed`: how many may be skipped before RunError, None: any number; `named`: whether warnings name them."""
        self.allowed = allowed
        self._named = named
        self._reasons: dict[str, str] = {}

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why each cannot be read, by what `ImageSource.describe` calls it, in the order in which they were met."""
        return self._reasons

    def listed(self) -> list[str]:
        """`NAME: REASON` of each."""
        return [f"{name}: {reason}" for name, reason in self._reasons.items()]

    def add(self, found: Iterable[tuple[str, str]]) -> None:
        """Enter (name, reason) pairs, also known ones; RunError that lists all where they are more than `allowed`."""
        new = {name: reason for name, reason in found if name not in self._reasons}
        self._reasons |= new
        count = len(self._reasons)
        if new and self.allowed is not None and count > self.allowed:
            listed = self.listed()
            shown = "; ".join(listed[:_SHOWN]) + ("; ..." if count > _SHOWN else "")
            many = f"{count} unreadable image{'s' * (count > 1)}"
            raise RunError(f"{many}, data.max_bad_images allows {self.allowed}: {shown}")
        if self._named:
            for name, reason in new.items():
                _log.warning("skipped: %s: %s", name, reason)
