"""Metrics of single answers: what was written against each accepted answer, the best of them, between 0 and 1.

Those of a corpus of generated texts are in tasks/corpus; tasks/judge puts both together.

Texts are compared as Honovich et al. (2022) and Zhou et al. (2022) do, but for numbers: a point between digits does not
end the text, and a minus before a number stays, so that 3.1 is not 3.2 and -5 not 5.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from foreword.tasks.extract import NO_ANSWER, Found, numbers

Metric = Literal["exact_match", "f1", "contains", "exact_set", "number", "bleu", "chrf", "rouge_l", "nist"]
NAMES: tuple[Metric, ...] = get_args(Metric)
GENERATION: tuple[Metric, ...] = ("bleu", "chrf", "rouge_l", "nist")

_END = re.compile(r"\n|(?<!\d)\.|\.(?!\d)")
_HYPHEN = re.compile(r"-(?!\d)|(?<=\w)-")
_DROPPED = str.maketrans("", "", string.punctuation.replace("-", "").replace(".", ""))


def normalised(text: str) -> str:
    """The first line to its first full stop, in lower case, without punctuation and " and ", with single spaces."""
    line = _END.split(text.replace(" and ", " ").strip(), maxsplit=1)[0].lower()
    return " ".join(_HYPHEN.sub(" ", line).translate(_DROPPED).split())


def exact_match(text: str, target: str) -> float:
    """Whether both are the same once normalised; where that leaves nothing of them, as they are."""
    written, wanted = normalised(text), normalised(target)
    return float(written == wanted and (bool(wanted) or text.strip() == target.strip()))


def f1(text: str, target: str) -> float:
    """Harmonic mean of precision and recall over words, counted with repetition."""
    written, wanted = normalised(text).split(), normalised(target).split()
    if not written or not wanted:
        return float(written == wanted)
    shared = sum((Counter(written) & Counter(wanted)).values())
    return 2 * shared / (len(written) + len(wanted))


def contains(text: str, target: str) -> float:
    """Whether the target stands in the text as whole words."""
    wanted = normalised(target)
    return float(bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", normalised(text)) is not None)


def exact_set(text: str, target: str) -> float:
    """Whether both have the same words, in whatever order."""
    return float(set(normalised(text).split()) == set(normalised(target).split()))


def number(text: str, target: str) -> float:
    """Whether the last number of the text is that of the target."""
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
    """The metric of one answer, against the target that it fits best; no answer is worth 0."""
    if answer is NO_ANSWER:
        return 0.0
    return max(METRICS[metric](answer, target) for target in targets)
