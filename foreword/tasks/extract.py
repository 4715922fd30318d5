"""Extract the answer from a text: a number, one of several choices, or a span; `NO_ANSWER` if there is none."""

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final, Literal, final

from foreword.core.format import Extract
from foreword.tasks.find_choice import Choices
from foreword.tasks.numerals import numbers as numbers
from foreword.tasks.numerals import plain_number, spans


@final
class _Missing(Enum):
    """Mark a missing answer with a type that cannot be mistaken for a text."""

    NO_ANSWER = "no answer found"


NO_ANSWER: Final = _Missing.NO_ANSWER
Found = str | Literal[_Missing.NO_ANSWER]

MARKER = re.compile(
    r"(?:\banswer\s*(?:is|=|:)\s*:?|####|答案\s*(?:是|[:\uff1a]))", re.IGNORECASE
)  # announces an answer
_SPAN_END = re.compile(r"\n|\.(?=\s|$)")


def extract(kind: Extract | None, text: str, choices: Sequence[Sequence[str]] = (), ended: bool = True) -> Found:
    """Return the answer of this kind in a text; `choices` are the words of each choice, and the first word names it.

    The text after the last "answer is", "answer:" or "####" is read first; a number or a choice that is not there is
    looked for in the text before it. After such a mark the first number or choice is the answer; elsewhere it is the
    last number, or the choice of `Choices.concluded`. A span goes from the mark to the end of the line or sentence.
    Without a kind the answer is the text.

    A text that was cut before its end (`ended` is False) may lack its last number or choice. It has an answer only if
    it states one and goes on after it: after a mark, or as a choice that it begins with.
    """
    if kind is None:
        return text.strip() or NO_ANSWER
    marks = [*MARKER.finditer(text)]
    said = text[marks[-1].end() :] if marks else None
    if kind == "span":
        return NO_ANSWER if said is None else _span(said, ended)
    find = _number if kind == "number" else lambda part, near, whole: _choice(part, choices, near, whole)
    if said is not None and (found := find(said, True, ended)) is not NO_ANSWER:
        return found
    if not ended:
        return NO_ANSWER if kind == "number" or said is not None else find(text, False, False)
    return find(text if said is None else text[: marks[-1].start()], False, True)


def _span(said: str, ended: bool) -> Found:
    first, *rest = _SPAN_END.split(said.strip(), maxsplit=1)
    if not ended and not any(part.strip() for part in rest):
        return NO_ANSWER
    return first.strip(" \t\"'*`") or NO_ANSWER


def _number(text: str, near: bool, ended: bool) -> Found:
    """Return the first number of a text if `near` a mark, else the last; NO_ANSWER if a cut text ends in it."""
    text, found = spans(text)
    if not found:
        return NO_ANSWER
    value, _, end = found[0 if near else -1]
    return plain_number(value) if ended or text[end:].strip(" .,") else NO_ANSWER


def _choice(text: str, choices: Sequence[Sequence[str]], near: bool, ended: bool) -> Found:
    read = Choices(text, choices)
    found = read.first() if near else read.concluded() if ended else read.opening()
    if found is None or not (ended or read.text[found.end :].strip(" .,")):
        return NO_ANSWER
    return found.name
