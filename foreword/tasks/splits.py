"""Split and sample rows by seed. A hash of the text decides the split, so equal texts never fall into two splits."""

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

from foreword.errors import ConfigError, DataError
from foreword.tasks.rows import Row

SPLIT_RULE = "sha256 of the row's text and the seed, modulo 10: 0-6 train, 7 validation, 8-9 test"
CARVE_RULE = "a tenth of the training rows, by sha256 of the row's text, is the validation set"


def digit(text: str, salt: str) -> int:
    return int(hashlib.sha256(f"{salt}\n{text}".encode(errors="surrogatepass")).hexdigest(), 16) % 10


def hashed_split(items: Sequence[Any], text: Callable[[Any], str], seed: int = 0) -> tuple[list[Any], ...]:
    """Return (train, validation, test), split by SPLIT_RULE."""
    parts: tuple[list[Any], ...] = ([], [], [])
    for item in items:
        d = digit(text(item), f"split {seed}")
        parts[0 if d < 7 else 1 if d == 7 else 2].append(item)
    return parts


def carve(items: Sequence[Any], text: Callable[[Any], str]) -> tuple[list[Any], list[Any]]:
    """Return (train, validation), split by CARVE_RULE."""
    train, validation = [], []
    for item in items:
        (validation if digit(text(item), "carve") == 0 else train).append(item)
    return train, validation


def draw(rows: Sequence[Row], count: int, seed: int) -> tuple[Row, ...]:
    """Draw `count` rows without replacement and keep their order; return all of them if there are no more."""
    if count >= len(rows):
        return tuple(rows)
    chosen = sorted(random.Random(f"limit {seed}").sample(range(len(rows)), count))
    return tuple(rows[i] for i in chosen)


def draw_shots(
    rows: Sequence[Row], labels: Sequence[str], k: int, seed: int, name: str
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Draw k rows of each class to train on and k others for development, from training rows with distinct texts.

    Rows with their own options, or whose answers are texts, have no classes: there k counts rows.
    """
    if k < 1:
        raise ConfigError(f"{k} shots were asked for; give 1 or more rows a class")
    rng = random.Random(f"shots {seed}")
    distinct = list({row.text(): row for row in reversed(rows) if row.label is not None or row.targets}.values())[::-1]
    train: list[Row] = []
    development: list[Row] = []
    for label in range(max(len(labels), 1)):
        pool = [row for row in distinct if row.label == label] if labels else distinct
        if len(pool) < 2 * k:
            what = f"label {labels[label]!r}" if labels else "this task"
            raise DataError(
                f"{k} shots need {2 * k} different training rows of each label ({k} to train on, {k} for development), "
                f"but {what} of {name} has {len(pool)}; ask for {len(pool) // 2} or fewer, or add rows"
            )
        chosen = rng.sample(pool, 2 * k)
        train += chosen[:k]
        development += chosen[k:]
    rng.shuffle(train)
    rng.shuffle(development)
    return tuple(train), tuple(development)
