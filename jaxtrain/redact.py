"""Passwords, tokens and keys are taken out of everything that is written or sent."""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "***"

_WORDS = "passw(?:or)?d|passphrase|secret|token(?!iz)|(?:api|access|account)[_-]?key|credential|signature"
_SHORT_WORDS = "key|pwd|sig|auth|sas"
_SECRET_NAME = re.compile(rf"{_WORDS}|(?:^|[._-])(?:{_SHORT_WORDS})(?:$|[._-])", re.IGNORECASE)
# A password may hold any character: once there is a user part, it reaches to the last @. Lengths are bounded
# and names begin where a word begins, so that long texts take linear time.
_USER_INFO = re.compile(
    r"(?<![a-z0-9+.-])([a-z][a-z0-9+.-]{0,30}://)(?=[^\s/'\"<>]{0,256}[:@])[^\s'\"<>]{0,512}@", re.IGNORECASE
)
_ASSIGNMENT = re.compile(
    rf"(?<![\w.-])((?:[\w.-]{{0,64}}(?:{_WORDS})[\w.-]{{0,64}}"
    rf"|(?:[\w.-]{{0,64}}[._-])?(?:{_SHORT_WORDS})(?:[._-][\w.-]{{0,64}})?)"
    r"['\"]?\s*[=:]\s*['\"]?)([^\s&;,'\"<>]+)",
    re.IGNORECASE,
)
# Tracebacks show source code. No secret is one of these words; of names without digits `key` alone is common in code.
_CODE = re.compile(r"(?:lambda|None|True|False|str|bytes|int|float|bool)\b[^\w-]*")
_CODE_AFTER_KEY = re.compile(r"[A-Za-z_][A-Za-z_.]*(?:[(\[].*|[\])}:|]*)")
_BEARER = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_KNOWN_TOKEN = re.compile(
    r"\b(?:gh[oprsu]_|github_pat_|glpat-|hf_|sk-|xox[abprs]-|dapi|AKIA|ASIA|eyJ)[A-Za-z0-9_.-]{12,}"
)


def secret_name(name: str) -> bool:
    """Whether a name is that of a secret: `api_key`, `db.password`; not `tokenizer`."""
    return _SECRET_NAME.search(name) is not None


def redact(text: str) -> str:
    """The text with secrets replaced by `***`.

    Taken out: the user part of any URI (`https://user:password@host`), values assigned to names that hold
    secrets (`?token=...`, `AccountKey=...`, `"password": "..."`), bearer tokens, and tokens of a known shape.
    Where it is unclear what a password is, more is hidden rather than less.
    """
    text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    text = _ASSIGNMENT.sub(_hidden, text)
    return _KNOWN_TOKEN.sub(HIDDEN, text)


def _hidden(assignment: re.Match[str]) -> str:
    """An assignment without its value, unless that is plainly source code: `key=lambda key: ...`, `token: str`."""
    name, value = assignment[1], assignment[2]
    before = assignment.string[: assignment.start()][-1:]
    quoted, address = "'" in name or '"' in name, before in ("?", "&")
    code = _CODE_AFTER_KEY if re.split(r"[\s=:]", name)[0] == "key" else _CODE
    return assignment[0] if not (quoted or address) and code.fullmatch(value) else f"{name}{HIDDEN}"


def redact_option(name: str, value: str) -> str:
    """The value of a named option, hidden as a whole where the name says that it is a secret."""
    return HIDDEN if value and secret_name(name) else redact(value)


def redact_command(arguments: Sequence[str]) -> str:
    """A command line on one line, secrets hidden, also where they are separate words (`--api-key VALUE`)."""
    shown = []
    hide_next = False
    for argument in arguments:
        is_flag = argument.startswith("-")
        shown.append(HIDDEN if hide_next and not is_flag else redact(argument))
        hide_next = is_flag and "=" not in argument and secret_name(argument.lstrip("-"))
    return " ".join(shown)
