"""Measure the slot error rate: attributes of a meaning representation that a text leaves out, says twice, or makes up.

    rate = (missing + repeated + hallucinated) / attributes, summed over the rows (Wen et al. 2015, with the kinds of
    Dusek, Howcroft and Rieser 2019)

A value is realised where one of its phrases stands in a sentence, case and punctuation ignored. An attribute whose
value is not realised is missing, unless another value of it is: then that one is hallucinated, and the slot wrong once.
A value realised more than once is repeated, except for names, which texts repeat to go on. The phrases are Foreword's
own, written after reading training rows only; a wording that they do not cover counts as missing.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import final

import numpy as np

from foreword.errors import DataError
from foreword.tasks.corpus_metrics import Summed, Sums, Values
from foreword.tasks.slot_rules import Slots

Meaning = Mapping[str, str]
_PAIR = re.compile(r"\s*([^\[\],]+?)\s*\[([^\]]*)\]\s*,?")


def plain(text: str) -> str:
    """Reduce a text to letters in lower case without accents, digits, £, and | at sentence ends, with single spaces."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    text = re.sub(r"n\s?['’]\s?t\b", "nt", text)
    text = re.sub(r"[.!?;:]+(?=\s|$)", "|", text)
    text = re.sub(r"[^a-z0-9£|]+", " ", text).replace("£ ", "£").replace("|", " | ")
    return f" {' '.join(text.split())} "


def meaning_of(fields: Mapping[str, str], where: str = "") -> dict[str, str]:
    """Return attributes and values: those in one field "name[Blue Spice], area[riverside]", or the fields themselves.

    Raises: DataError if the one field is not written so.
    """
    if len(fields) > 1:
        return dict(fields)
    [source] = fields.values()
    pairs = _PAIR.findall(source)
    if not pairs or _PAIR.sub("", source).strip():
        raise DataError(
            f"{where or 'A row'}: slot errors need attributes as name[Blue Spice], area[riverside], but it has "
            f"{source!r}; write it so, give a column for each attribute, or leave slots out."
        )
    return {name.strip(): value.strip() for name, value in pairs}


def slot_errors(slots: Slots, answers: Sequence[str], meanings: Sequence[Meaning]) -> Summed:
    """Compute the rate as a ratio of sums; the features are missing, repeated, hallucinated and attributes.

    It is above 1 if more is wrong than was asked for. A text without words has every attribute missing.
    """
    known: dict[str, dict[str, None]] = {}
    for meaning in meanings:
        for name, value in meaning.items():
            known.setdefault(name, {})[value] = None
    search = _SlotSearch(slots, {name: tuple(values) for name, values in known.items()})
    rows = [[*search.count(text, meaning), len(meaning)] for text, meaning in zip(answers, meanings, strict=True)]
    return Summed(np.array(rows, dtype=np.float64).reshape(-1, 4), rate, high=float("inf"))


def rate(sums_DF: Sums, rows: int) -> Values:
    return sums_DF[:, :3].sum(axis=1) / np.maximum(sums_DF[:, 3], 1)


@final
class _SlotSearch:
    """Find values in texts. Literal values are those of all rows, so that a value of another row is recognised."""

    def __init__(self, slots: Slots, known: Mapping[str, tuple[str, ...]]) -> None:
        self._slots = slots
        patterns = [
            (attribute, value, expression)
            for attribute, own in slots.phrases.items()
            for value, expression in own.items()
        ]
        literal = [(a, v, _literal(v)) for a, values in known.items() if a not in slots.phrases for v in values]
        # Names first and the longest first, each taken out of the text: the "curry" of The Golden Curry is no food.
        literal.sort(key=lambda one: (one[0] not in slots.names, -len(one[2])))
        self._literal = [(a, v, re.compile(e)) for a, v, e in literal if e]
        self._patterns = [(a, v, re.compile(f"(?<![^ ])(?:{e})(?![^ ])")) for a, v, e in patterns]

    def count(self, text: str, meaning: Meaning) -> tuple[int, int, int]:
        """Count the attributes that are missing, the repetitions of values, and the hallucinated values."""
        said = self._said(plain(text), meaning)
        missing = repeated = hallucinated = 0
        for attribute in {*meaning, *(a for a, _ in said)}:
            wanted = self._group(attribute, meaning[attribute]) if attribute in meaning else frozenset[str]()
            right = sum(n for (a, v), n in said.items() if a == attribute and v in wanted)
            general = self._slots.general
            wrong = [v for a, v in said if a == attribute and v not in wanted and (a, v) not in general]
            groups = len({self._group(attribute, v) for v in wrong})
            hallucinated += groups
            missing += bool(wanted) and not right and not groups
            free = attribute in self._slots.names or (attribute, meaning.get(attribute, "")) in general
            repeated += 0 if free else max(0, right - 1)
        return missing, repeated, hallucinated

    def _group(self, attribute: str, value: str) -> frozenset[str]:
        for group in self._slots.same.get(attribute, ()):
            if value in group:
                return frozenset(group)
        return frozenset((value,))

    def _said(self, text: str, meaning: Meaning) -> dict[tuple[str, str], int]:
        """Count how often each value is said, by attribute; a value shared by attributes counts for that of the row."""
        said: dict[tuple[str, str], int] = {}
        taken: dict[str, int] = {}
        for attribute, value, pattern in self._literal:
            if pattern.pattern in taken:
                times = taken[pattern.pattern]  # another attribute has a value of this name
                if not times or meaning.get(attribute) != value:
                    continue
                said = {key: n for key, n in said.items() if key[1] != value or meaning.get(key[0]) == value}
            else:
                text, times = pattern.subn(" | ", text)
                taken[pattern.pattern] = times
            if times:
                said[attribute, value] = times
        for attribute, value, pattern in self._patterns:
            text, times = pattern.subn(" | ", text)
            if times:
                said[attribute, value] = times
        return said


@lru_cache(maxsize=4096)
def _literal(value: str) -> str:
    """Return the pattern of a value's words, without "the" at its beginning; "" if there are no words."""
    words = plain(value).split()
    words = words[1:] if len(words) > 1 and words[0] == "the" else words
    return rf"(?<![^ ]){' '.join(map(re.escape, words))}(?![^ ])" if words else ""


def _e2e() -> Slots:
    from foreword.tasks.slots_e2e import E2E

    return E2E


def _listings() -> Slots:
    from foreword.tasks.builtin.listings_words import SLOTS as LISTINGS

    return LISTINGS


SLOTS: dict[str, Callable[[], Slots]] = {"literal": Slots, "e2e": _e2e, "listings": _listings}
