"""Plain English in the whole repository: no metaphors, no stiff phrases."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ["*.toml", "*.ini", "*.md", "keras_wavg/**/*.py", "examples/*"]
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for place in [*PLACES, "tests/**/*.py", "tests/**/*.md"]
    for path in sorted(ROOT.glob(place))
    if path.suffix in {".toml", ".ini", ".md", ".py"} and path != Path(__file__)
}
BANNED = [
    # Metaphors.
    r"rooms?\b(?! for)",
    r"towers?",
    r"fellows?",
    r"rid(?:er|ers|es|ing)(?: along)?",
    r"tasting",
    r"seats?",
    r"passengers?",
    r"namesakes?",
    r"strangers?",
    # Stiff or translated phrases.
    r"anew",
    r"as ever",
    r"at hand",
    r"goes on from",
    r"head start",
    r"meanwhile",
    r"of ours",
    r"one's own",
    r"put up with",
    r"shall",
    r"so many (?!that)",
    r"speaks? of",
    r"there are of them",
    r"thereof",
    r"to and fro",
    r"too dear",
    r"whoever",
    r"whole or not at all",
]
PATTERN = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)


def banned(text):
    """The banned words in a text, with the numbers of their lines."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = PATTERN.findall(line.replace("_", " "))
        if words:
            found[number] = words
    return found


@pytest.mark.parametrize("path", TEXTS)
def test_a_file_has_no_banned_words(path):
    assert banned(TEXTS[path]) == {}


def test_banned_words_are_found():
    text = "def test_a_rider(): ...\nAll is as ever.\nThere is room for it."
    assert banned(text) == {1: ["rider"], 2: ["as ever"]}
