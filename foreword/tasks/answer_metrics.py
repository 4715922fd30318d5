"""Compare a single answer with each accepted answer; its metric, between 0 and 1, is the best of these values.

Metrics of a corpus of generated texts are in tasks/corpus_metrics; tasks/text_metric puts both together.

Texts are compared whole: stop strings and the model's end token decide where an answer ends, never this module. Case,
white space, the Unicode form of a letter (tasks/words) and one sentence-final mark at the end of a text make no
difference. All other punctuation does: C++ is not C#, 1/2 is not 12, and J. K. is not J. R. R.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from foreword.tasks.extract import NO_ANSWER, Found, numbers
from foreword.tasks.words import plain, tokens, without_final

Metric = Literal["exact_match", "f1", "contains", "exact_set", "number", "bleu", "chrf", "rouge_l", "nist"]
NAMES: tuple[Metric, ...] = get_args(Metric)
GENERATION: tuple[Metric, ...] = ("bleu", "chrf", "rouge_l", "nist")
RULE = "whole text"  # by which single answers are compared; runs judged by another rule are other runs


def comparable(text: str) -> str:
    """Return the form in which answers are compared: `plain`, without one sentence-final mark; a mark alone stays."""
    text = plain(text)
    return without_final(text) or text


def exact_match(text: str, target: str) -> float:
    """Return whether both are the same but for case, white space, Unicode form and one sentence-final mark."""
    return float(comparable(text) == comparable(target))


def f1(text: str, target: str) -> float:
    """Return the harmonic mean of precision and recall over words, counted with repetition."""
    written, wanted = tokens(text), tokens(target)
    if not written or not wanted:
        return exact_match(text, target)
    shared = sum((Counter(written) & Counter(wanted)).values())
    return 2 * shared / (len(written) + len(wanted))


def contains(text: str, target: str) -> float:
    """Return whether the target stands in the text as whole words."""
    written, wanted = tokens(text), tokens(target)
    if not wanted:
        return float(bool(target.strip()) and comparable(target) in comparable(text))
    starts = range(len(written) - len(wanted) + 1)
    return float(any(written[start : start + len(wanted)] == wanted for start in starts))


def exact_set(text: str, target: str) -> float:
    """Return whether both have the same set of words, in any order."""
    written, wanted = set(tokens(text)), set(tokens(target))
    return float(written == wanted) if written or wanted else exact_match(text, target)


def number(text: str, target: str) -> float:
    """Return whether the last number of the text is that of the target."""
    written, wanted = numbers(text), numbers(target)
    return float(bool(written and wanted) and math.isclose(written[-1], wanted[-1], rel_tol=1e-9))


METRICS: dict[Metric, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "contains": contains,
    "exact_set": exact_set,
    "number": number,
}


def value_of(metric: Metric, answer: Found, targets: Sequence[str]) -> float:
    """Return the metric of one answer against the target that it fits best; a missing answer is worth 0."""
    if answer is NO_ANSWER:
        return 0.0
    return max(METRICS[metric](answer, target) for target in targets)
