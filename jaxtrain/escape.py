"""The one way out for text that we did not write, such as names of classes and files: made harmless for each format.

HTML is escaped by the templates, JSON and YAML by their writers.
"""

from __future__ import annotations

import re
from typing import Any

# Full-width signs count: spreadsheets with East Asian input take them for formulas too.
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_MARKDOWN = re.compile(
    r"[\\`*<>|~$&]|(?<![^\W_])_|_(?![^\W_])|\](?=[(:])|(?<=:)//|(?<=\bwww)\.|^(?:[#+-]|\d+(?=[.)]))|(?<=\w)@"
)


def plain(text: str) -> str:
    """One line for a terminal, without control characters and marks that change the direction of writing."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def csv_cell(value: Any) -> Any:
    """A value for a CSV file: text that a spreadsheet would take for a formula begins with an apostrophe.

    >>> csv_cell("=1+1"), csv_cell("-0.5"), csv_cell(-0.5)
    ("'=1+1", '-0.5', -0.5)
    """
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # which ends a row for some readers, and the csv module does not quote it
    if not _FORMULA.match(value):
        return text
    try:
        float(value)
    except ValueError:
        return f"'{text}"
    return text


def markdown(text: str) -> str:
    r"""One line of Markdown that is read as this text: no markup, HTML, link or cell of a table begins in it.

    >>> markdown("<b>|a_b|"), markdown("differ by 1.0 points, [-0.1, 2.1]")
    ('\\<b\\>\\|a_b\\|', 'differ by 1.0 points, [-0.1, 2.1]')
    """
    return _MARKDOWN.sub(lambda sign: f"\\{sign[0]}" if not sign[0].isdigit() else f"{sign[0]}\\", plain(text))
