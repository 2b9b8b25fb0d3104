"""What people read is plain English: none of the turns of phrase that crept in before."""

import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    ROOT / "README.md",
    *(
        path
        for folder in ("jaxtrain", "scripts", "configs", ".github")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".md", ".j2", ".yaml")
    ),
]
COUNTED = (
    "[Ii]mages|[Ss]econds|[Mm]illiseconds|ms|[Vv]ectors|[Rr]ows?|[Ff]older|[Ss]teps|[Bb]atch|[Ll]ine|[Oo]perations"
)
PER = "class|image|step|run|label|chip|device|host|call|layer|block|model|second"
PATTERNS = {
    r"(?<!there )\b(?:is|are) no (?!longer|more|less|use|wider|larger|smaller|better|worse)\w": "is not a",
    r"\bso many\b(?! that)": "this many, that many",
    rf"\b(?:{COUNTED}) an? (?:{PER})\b": "per",
    r"\b(?:stands|stand|lies|lie) in (?!the metric's range)": "is in, is written to",
    r"\b(?:stays?|kept|left|leaves) (?:the test set )?shut\b": "is not read",
    r"\banew\b": "again",
    r"\bbut for\b": "except for",
}


def passages(path: Path) -> list[tuple[int, str]]:
    """The line and the words of strings and comments of code, or of all lines of another file."""
    if path.suffix != ".py":
        return list(enumerate(path.read_text().splitlines(), 1))
    kinds = (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    with path.open("rb") as file:
        return [(one.start[0], one.string) for one in tokenize.tokenize(file.readline) if one.type in kinds]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_sentence_has_the_pattern(pattern):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {match[0]}: {PATTERNS[pattern]}"
        for path in FILES
        for line, text in passages(path)
        for match in re.finditer(pattern, " ".join(text.split()))
    ]
    assert found == []


def test_the_patterns_find_what_they_are_for():
    bad = "it is no image, of so many images a class, which stands in a set that stays shut; made anew but for one"
    assert all(re.search(pattern, bad) for pattern in PATTERNS)
