"""Passwords, tokens and keys are taken out of everything that is written or sent."""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "***"

_PASSWORDS = "passw(?:or)?d|passphrase|passcode|secret"
_WORDS = rf"{_PASSWORDS}|token(?!iz)|(?:api|access|account|private)[_-]?key|credential|signature|cookie"
_SHORT_PASSWORDS = "pass|pwd"
_SHORT_WORDS = rf"{_SHORT_PASSWORDS}|key|sig|auth|sas"
_SECRET_NAME = re.compile(rf"{_WORDS}|(?:^|[._-])(?:{_SHORT_WORDS})(?:$|[._-])", re.IGNORECASE)
_NETWORK_TOKEN = re.compile(
    r"(?:cls|class|mask|dist|distill|reg|register|pos|pad|eos|bos|sep|unk|num|n|max|min|total|prefix)[_-]tokens?$"
    r"|tokens?[_-](?:dim|size|count|len|length|type|drop|dropout|mix|mixer|mixing|embed|embedding|pool|labels?)",
    re.IGNORECASE,
)
"""Tokens that are parts of networks."""

# A password may hold any character: once there is a user part, it reaches to the last @. Lengths are bounded
# and names begin where a word begins, so that long texts take linear time.
_USER_INFO = re.compile(
    r"(?<![a-z0-9+.-])([a-z][a-z0-9+.-]{0,30}://)(?=[^\s/'\"<>]{0,256}[:@])[^\s'\"<>]{0,512}@", re.IGNORECASE
)
_USER_OPTION = re.compile(r"(?<!\S)((?:-u|--user)\s+[^\s:'\"]{1,64}:)[^\s'\"]+")


def _assignment(before: str, words: str, short_words: str, value: str) -> re.Pattern[str]:
    """`name=value`, `"name": "some value"` and `--name value`, the name holding one of the words."""
    return re.compile(
        rf"(?<![\w.{before}-])(?P<name>(?P<flag>--?)?(?:[\w.-]{{0,64}}(?:{words})[\w.-]{{0,64}}"
        rf"|(?:[\w.-]{{0,64}}[._-])?(?:{short_words})(?:[._-][\w.-]{{0,64}})?))"
        r"(?P<sign>\\*['\"]?\s*[=:]\s*|(?(flag)\s+(?!-)|(?!)))"
        rf"(?:(?P<quote>\\*['\"])(?P<quoted>(?:(?!(?<!\\)(?P=quote))[^\n]){{1,2000}})|(?P<value>{value}))",
        re.IGNORECASE,
    )


_ASSIGNMENTS = (  # a password holds commas and ampersands, but in addresses
    _assignment("?&", _PASSWORDS, _SHORT_PASSWORDS, r"[^\s'\"<>]+"),
    _assignment("", _WORDS, _SHORT_WORDS, r"[^\s&;,'\"<>]+"),
)
# Tracebacks show source code. No secret is one of these words; of names without digits `key` alone is common in code.
_CODE = re.compile(r"(?:lambda|None|True|False|str|bytes|int|float|bool|none|null|auto|cls)\b[^\w-]*")
_CODE_AFTER_KEY = re.compile(r"\(?[A-Za-z_][A-Za-z_.]*(?:[(\[].*|[\])}:|]*)")
_PROSE_AFTER_OPTION = re.compile(r"(?:is|was|must|needs|has|cannot|takes|and|or)\b")
_COUNT = re.compile(r"\d{1,3}[^\w-]*")
_BEARER = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_KNOWN_TOKEN = re.compile(
    r"\b(?:gh[oprsu]_|github_pat_|glpat-|hf_|sk-|xox[abprs]-|dapi|AKIA|ASIA|eyJ)[A-Za-z0-9_.-]{12,}"
)


def secret_name(name: str) -> bool:
    """Whether a name is that of a secret: `api_key`, `db.password`; not `tokenizer`, `cls_token`."""
    return _SECRET_NAME.search(name) is not None and not _NETWORK_TOKEN.search(name)


def redact(text: str) -> str:
    """The text with secrets replaced by `***`.

    Taken out: the user part of any URI (`https://user:password@host`), values given to names that hold
    secrets (`?token=...`, `AccountKey=...`, `"password": "..."`, `--token ...`), bearer tokens, and tokens of a known
    shape. Where it is unclear what a password is, more is hidden rather than less.
    """
    text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
    text = _USER_OPTION.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    for pattern in _ASSIGNMENTS:
        text = pattern.sub(_hidden, text)
    return _KNOWN_TOKEN.sub(HIDDEN, text)


def _hidden(found: re.Match[str]) -> str:
    """An assignment without its value, unless that is plainly no secret: source code, a count, part of a path."""
    name, sign, quote, value = found["name"], found["sign"], found["quote"] or "", found["value"] or ""
    before = found.string[max(0, found.start() - 300) : found.start()]
    if _NETWORK_TOKEN.search(name):
        return found[0]
    if not quote and before[-1:] not in ("?", "&"):
        word = re.split(r"[\s'\"<>]", before)[-1]
        folder = before.endswith("/") and "://" not in word and not set("=:") & set(value.rstrip(":"))
        code = (_CODE_AFTER_KEY if name in ("key", "signature") else _CODE).fullmatch(value) and not set("'\"") & set(
            sign
        )
        prose = not sign.strip() and _PROSE_AFTER_OPTION.match(value)
        count = _COUNT.fullmatch(value) and not re.search(_PASSWORDS + "|pwd", name, re.IGNORECASE)
        if folder or code or prose or count:
            return found[0]
    return f"{name}{sign}{quote}{HIDDEN}"


def redact_option(name: str, value: str) -> str:
    """The value of a named option, hidden as a whole where the name says that it is a secret."""
    return HIDDEN if value and secret_name(name) else redact(value)


def redact_command(arguments: Sequence[str]) -> str:
    """A command line on one line, secrets hidden, also where they are separate words (`--api-key VALUE`)."""
    shown = []
    hide_next = False
    for argument in arguments:
        is_flag = argument.startswith("--") or (argument.startswith("-") and not hide_next)
        shown.append(HIDDEN if hide_next and not is_flag else redact(argument))
        hide_next = is_flag and "=" not in argument and secret_name(argument.lstrip("-"))
    return " ".join(shown)
