"""Choose which rows are shown, how many fit, and in which order."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from foreword.core.demos import Example, with_demos
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.core.shapes import Float, Tensor
from foreword.errors import ConfigError, DataError
from foreword.inference.features import EncodedRows, encode_rows
from foreword.inference.scoring import ScoreRequest, score_readings
from foreword.models.base import FrozenLM
from foreword.tasks.label_metrics import log_probabilities
from foreword.tasks.rows import Row
from foreword.tasks.task import Task

LONGEST_TRIED = 4  # rows whose exact length decides; tokenisation may add a token where texts meet


def pool_of(task: Task) -> list[Row]:
    """Return training rows that may be shown: labelled, each text once, and no text of a validation or test row.

    Raises: DataError if there is none.
    """
    held = {row.text() for split in ("validation", "test") for row in task.rows(split)}
    rows = {row.text(): row for row in task.train if row.label is not None and row.text() not in held}
    if not rows:
        why = "they are all development or test rows too" if task.train else "there are no training rows"
        raise DataError(f"{task.name!r} has no row to show as a demonstration: {why}; add labelled training rows.")
    return list(rows.values())


def example_of(form: Format, row: Row) -> Example:
    """Return a row with the first word of its label."""
    assert row.label is not None, "only labelled rows are shown"
    word = form.words[row.label][0] if form.words else row.options[row.label]
    return Example(dict(row.fields), word)


def drawn(pool: Sequence[Row], select: Literal["random", "balanced"], rng: random.Random) -> list[Row]:
    """Return all rows in a drawn order; "balanced" takes the labels in turn."""
    rows = rng.sample(pool, len(pool))
    if select == "random":
        return rows
    by_label: dict[int | None, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row.label, []).append(row)
    queues = list(by_label.values())
    rng.shuffle(queues)
    longest = max(map(len, queues))
    return [queue[i] for i in range(longest) for queue in queues if i < len(queue)]


def put(form: Format, rows: Sequence[Row], separator: str) -> Format:
    """Return the format with these rows shown."""
    examples = [example_of(form, row) for row in rows]
    return replace(form, template=with_demos(form.template, examples, separator, data=not form.words))


def longest_rows(lm: FrozenLM, form: Format, task: Task, uncut: float) -> list[Row]:
    """Return the rows that demonstrations must leave whole: the longest of all splits, or of their shortest `uncut`.

    Raises: ConfigError if such a row has no room even alone.
    """
    rows = [row for split in ("train", "validation", "test") for row in task.rows(split)]
    bare = replace(form, template=form.template.without_demos(), truncate="tail")
    length = np.array([len(e) + e.cut for e in encode_rows(lm, bare, rows)])
    order = np.argsort(length, kind="stable")
    last = max(1, int(np.ceil(uncut * len(rows))))
    longest = [int(i) for i in order[max(0, last - LONGEST_TRIED) : last]]
    room = min(form.max_length or lm.dims.context, lm.dims.context)
    if length[longest].max() > room:
        raise ConfigError(
            f"The longest row takes {length[longest].max()} tokens and there is room for {room}, so no demonstration "
            f"fits beside it; let the longest rows be cut with -o uncut=0.95, say (at present {uncut:g} of all rows "
            "stay whole), or shorten them."
        )
    return [rows[i] for i in longest]


def count_fitting(lm: FrozenLM, form: Format, shown: Sequence[Row], beside: Sequence[Row], separator: str) -> int:
    """Return how many of `shown`, from the first on, fit before each row of `beside` without cutting anything."""
    low, high = 0, len(shown)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _fits(lm, put(form, shown[:middle], separator), beside) else (low, middle - 1)
    return low


def _fits(lm: FrozenLM, form: Format, beside: Sequence[Row]) -> bool:
    try:
        return not any(e.cut for e in encode_rows(lm, replace(form, truncate="tail"), beside))
    except (ConfigError, DataError):  # the template alone is longer than the context, or the rest of the row is
        return False


def scores_of(
    lm: FrozenLM, forms: Sequence[Format], rows: Sequence[Row], encoded_rows: EncodedRows | None = None
) -> list[Float[Tensor, "N C"]]:
    """Return scores of the same rows in each format, all in mixed batches."""
    nothing = HardPrompt.empty()
    return score_readings(lm, [ScoreRequest(nothing, form, rows, (), encoded_rows) for form in forms])


def entropy(score_NC: Float[Tensor, "N C"]) -> tuple[float, float]:
    """Return the entropy of the predicted labels and the mean of each row's, in nats (Lu et al. 2022).

    An order under which every row gets the same label has a global entropy of 0.
    """
    logprob_NC = log_probabilities(score_NC.double().cpu().numpy())
    share_C = np.bincount(logprob_NC.argmax(1), minlength=logprob_NC.shape[1]) / len(logprob_NC)
    present = share_C[share_C > 0]
    prob_NC = np.exp(logprob_NC)
    own_NC = np.where(prob_NC > 0, prob_NC * np.where(prob_NC > 0, logprob_NC, 0.0), 0.0)
    return float(-(present * np.log(present)).sum()), float(-own_NC.sum(1).mean())
