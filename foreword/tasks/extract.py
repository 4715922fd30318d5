"""The answer inside a text: a number, one of several choices, or a span; where there is none, a value that says so."""

import math
import re
from collections.abc import Sequence
from enum import Enum
from typing import Final, Literal, final

from foreword.core.format import Extract


@final
class _Missing(Enum):
    """Its own type, so that it can be mistaken for no text."""

    NO_ANSWER = "no answer found"


NO_ANSWER: Final = _Missing.NO_ANSWER
Found = str | Literal[_Missing.NO_ANSWER]

MARKER = re.compile(r"(?:\banswer\s*(?:is|=|:)\s*:?|####)", re.IGNORECASE)  # what announces an answer
_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w)")
_SPAN_END = re.compile(r"\n|\.(?=\s|$)")


def extract(kind: Extract | None, text: str, choices: Sequence[Sequence[str]] = ()) -> Found:
    """The answer of this kind in a text; `choices` are the words of each choice, the first of which stands for it.

    What follows the last "answer is", "answer:" or "####" is read first, and for a number or a choice the whole text if
    nothing is there. After such a mark the first number or choice is the answer, elsewhere the last. A span goes from
    the mark to the end of the line or sentence. Without a kind the answer is the text.
    """
    if kind is None:
        return text.strip() or NO_ANSWER
    marks = [*MARKER.finditer(text)]
    said = text[marks[-1].end() :] if marks else None
    if kind == "span":
        return NO_ANSWER if said is None else (_SPAN_END.split(said.strip(), 1)[0].strip(" \t\"'*`") or NO_ANSWER)
    find = _numbers if kind == "number" else lambda part: _chosen(part, choices)
    if said is not None and (near := find(said)):
        return near[0]
    far = find(text if said is None else text[: marks[-1].start()])
    return far[-1] if far else NO_ANSWER


def numbers(text: str) -> list[float]:
    """Every finite number in a text, in order."""
    return [float(found) for found in _numbers(text)]


def _numbers(text: str) -> list[str]:
    found = []
    for match in _NUMBER.finditer(text):
        value = float(match.group().replace(",", "").replace("\u2212", "-"))
        if math.isfinite(value):
            found.append(plain_number(value))
    return found


def plain_number(value: float) -> str:
    """12, 12.0 and 1.2e1 alike."""
    return str(int(value)) if value == int(value) and abs(value) < 1e16 else repr(value)


def _chosen(text: str, choices: Sequence[Sequence[str]]) -> list[str]:
    """The choices named in a text, in order; of words that begin at one place, or hold each other, the longest."""
    names = {word.casefold(): words[0] for words in choices for word in words}
    if not names:
        return []
    # Longest first: in an alternation the first that matches is taken.
    words = "|".join(re.escape(word) for word in sorted(names, key=len, reverse=True))
    return [names[match.group().casefold()] for match in re.finditer(rf"(?<!\w)(?:{words})(?!\w)", text, re.IGNORECASE)]
