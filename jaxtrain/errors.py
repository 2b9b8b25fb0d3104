"""The errors a user can meet. Each message is one line: what is wrong, where, and what would be valid."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtrain.escape import plain


class JaxtrainError(Exception):
    """Base of every error that jaxtrain raises on purpose; scripts print its message without a traceback.

    The message may hold names that a stranger's file gave: it becomes one line without control characters, and its
    middle is left out where it is longer than a screen.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        text = plain(message)
        super().__init__(text if len(text) < 2000 else f"{text[:1500]} ... {text[-400:]}")


class UserError(JaxtrainError):
    """A wrong option, configuration or input, found before or while it is used. Exit code 2."""

    exit_code = 2


class DamagedError(UserError):
    """A file or folder that is not what it has to be: which one, what is wrong with it, and what to do. Exit code 2.

    The one error that `jaxtrain.readers` raises, whatever the bytes are.
    """


class RunError(JaxtrainError):
    """A run that could not go on (bad data on disk, non-finite loss, no space). Exit code 1."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message: the nearest valid name, or all of them when none is near.

    >>> nearest("resnet81", ["resnet18", "vit_tiny"])
    "did you mean 'resnet18'?"
    """
    import difflib  # a program hears of signals the sooner

    options = sorted(valid)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    shown = ", ".join(options[:20]) + (", ..." if len(options) > 20 else "")
    return f"valid: {shown}"
