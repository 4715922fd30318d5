"""Score rows by counts of their words."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import torch

from foreword.core.shapes import Float, Tensor
from foreword.core.values import WordCounts
from foreword.tasks.rows import Row

WORD = re.compile(r"\w+|[^\w\s]")


def row_words(fields: Sequence[str], row: Row) -> list[str]:
    """Lower-case words and pairs of neighbours; where a row has several texts each word is marked with its field."""
    words = []
    for name in fields:
        mark = f"{name}:" if len(fields) > 1 else ""
        found = WORD.findall(row.fields[name].lower())
        words += [mark + w for w in found] + [f"{mark}{a} {b}" for a, b in pairwise(found)]
    return words


def count_scores(value: WordCounts, fields: Sequence[str], rows: Sequence[Row]) -> Float[Tensor, "N C"]:
    """TF-IDF (sublinear counts, rows of length 1) times the classifier's weights."""
    column = {word: i for i, word in enumerate(value.words)}
    out = value.bias_C.repeat(len(rows), 1)
    for number, row in enumerate(rows):
        counts = Counter(column[w] for w in row_words(fields, row) if w in column)
        if counts:
            index = torch.tensor(list(counts))
            weight = (1.0 + torch.tensor([float(c) for c in counts.values()]).log()) * value.idf_V[index]
            out[number] += value.weight_CV[:, index] @ (weight / weight.norm())
    return out
