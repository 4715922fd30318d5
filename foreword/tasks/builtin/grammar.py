"""Generate small texts from shapes with named slots, and from pools of words kept apart between the splits."""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any

from foreword.tasks.rows import Table
from foreword.tasks.task import Task

SPLITS = ("train", "validation", "test")
SLOT = re.compile(r"\{(\w+)\}")


@cache
def pools(source: str, separator: str = ",") -> dict[str, tuple[str, ...]]:
    """Split `"a, b | c | d, e"` into the words of train, validation and test; return them by split."""
    parts = [tuple(" ".join(w.split()) for w in part.split(separator) if w.strip()) for part in source.split("|")]
    assert len(parts) == len(SPLITS), source
    return dict(zip(SPLITS, parts, strict=True))


def lines(source: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in source.strip().splitlines() if line.strip())


def fill(shape: str, choose: Mapping[str, Callable[[], str]]) -> str:
    """Fill every slot of the shape; a name that occurs twice is filled by a new choice each time."""
    return SLOT.sub(lambda match: choose[match.group(1)](), shape)


def articles(text: str) -> str:
    """Write `a` as `an` before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeio]|u(?!ni|se))", r"\1n ", text)


def sentence(text: str) -> str:
    """Correct the articles, and capitalise the first letter of each sentence and the pronoun I."""
    text = re.sub(r"\bi\b", "I", articles(text))
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match.group(1) + match.group(2).upper(), text)


class ShuffledDeck:
    """Draw without replacement and reshuffle when empty, so that rare items are seen as often as others."""

    def __init__(self, rng: random.Random, items: Sequence[str]) -> None:
        self._rng, self._items, self._left = rng, tuple(items), []  # type: ignore[var-annotated]

    def __call__(self) -> str:
        if not self._left:
            self._left = list(self._items)
            self._rng.shuffle(self._left)
        return self._left.pop()


def build(
    name: str,
    labels: Sequence[str],
    sizes: Mapping[str, int],
    make: Callable[[str, int], Iterator[str]],
    **default: Any,
) -> Task:
    """Build a synthetic task: labels in turn, and no text occurs twice in all splits (case and punctuation ignored)."""
    seen: set[str] = set()
    tables = {}
    for split, size in sizes.items():
        texts = [make(split, label) for label in range(len(labels))]
        records = []
        for number in range(size):
            label = number % len(labels)
            text = next((t for t in islice(texts[label], 1000) if key(t) not in seen), None)
            assert text is not None, f"{name} {split} runs out of different texts for {labels[label]}"
            seen.add(key(text))
            records.append({"text": text, "label": labels[label]})
        tables[split] = Table(tuple(records), f"builtin:{name} {split}")
    task = Task(tables, name=name, labels=labels, **default)
    return task.with_(synthetic=True, notes=("text generated for Foreword, not written by users",))


def key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()
