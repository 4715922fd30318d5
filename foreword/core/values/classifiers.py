"""Hold classifiers that read no label words: a probe of frozen features, and word counts, which need no model."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch

from foreword.core.learnt import Learnt, Reader, check_width
from foreword.core.record import are_distinct, are_texts
from foreword.core.serialise import check_ranks, check_single
from foreword.core.shapes import Float, Tensor
from foreword.core.text import shown
from foreword.errors import ArtefactError

POOLS = ("answer", "mean", "head")  # what of a row a probe reads
WORD = re.compile(r"\w+|[^\w\s]")


@final
@dataclass(frozen=True, eq=False)
class Probe(Learnt, form="probe", stored={"weight": "weight_CD", "bias": "bias_C"}):
    """Hold a linear classifier over frozen features; standardisation is folded in. `pool` is one of `POOLS`."""

    weight_CD: Float[Tensor, "C D"]
    bias_C: Float[Tensor, "C"]
    pool: str

    @property
    def label_count(self) -> int:
        return len(self.bias_C)

    def record(self) -> dict[str, Any]:
        return {"pool": self.pool}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "Probe":
        check_ranks(tensors, weight=2, bias=1)
        check_single(tensors)
        if record["pool"] not in POOLS:
            raise ArtefactError(f"the probe reads {shown(record['pool'])}; it can read {', '.join(POOLS)}.")
        if len(tensors["weight"]) != len(tensors["bias"]):
            raise ArtefactError("the probe's weights and biases are of different numbers of labels.")
        return Probe(tensors["weight"], tensors["bias"], record["pool"])

    def check_model(self, lm: Reader) -> None:
        check_width(lm, self.weight_CD.shape[1])


@final
@dataclass(frozen=True, eq=False)
class WordCounts(Learnt, form="word-counts", stored={"idf": "idf_V", "weight": "weight_CV", "bias": "bias_C"}):
    """Hold TF-IDF with logistic regression: scores are `tfidf @ weight.T + bias` over the word list's columns."""

    needs_model = False
    privacy = "It holds words of the training texts, in clear."
    words: tuple[str, ...]
    idf_V: Float[Tensor, "V"]
    weight_CV: Float[Tensor, "C V"]
    bias_C: Float[Tensor, "C"]

    @property
    def any_model(self) -> bool:
        return True

    @property
    def label_count(self) -> int:
        return len(self.bias_C)

    def scores(self, texts: Sequence[Sequence[str]]) -> Float[Tensor, "N C"]:
        """Return the scores of rows, given by their words. Counts are sublinear and a row has length 1."""
        column = {word: i for i, word in enumerate(self.words)}
        score_NC = self.bias_C.repeat(len(texts), 1)
        for number, words in enumerate(texts):
            counts = Counter(column[word] for word in words if word in column)
            if counts:
                index = torch.tensor(list(counts))
                weight = (1.0 + torch.tensor([float(c) for c in counts.values()]).log()) * self.idf_V[index]
                score_NC[number] += self.weight_CV[:, index] @ (weight / weight.norm())
        return score_NC

    def record(self) -> dict[str, Any]:
        return {"words": list(self.words)}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "WordCounts":
        words, idf_V, weight_CV, bias_C = record["words"], tensors["idf"], tensors["weight"], tensors["bias"]
        if not are_texts(words) or not are_distinct(words) or len(words) != idf_V.numel():
            raise ArtefactError(f"the record's words are not {idf_V.numel()} different texts, one for each column.")
        check_ranks(tensors, idf=1, weight=2, bias=1)
        check_single(tensors)
        if list(weight_CV.shape) != [len(bias_C), len(idf_V)]:
            raise ArtefactError(f"the weights are of shape {list(weight_CV.shape)}, which fits no labels and words.")
        return WordCounts(tuple(words), idf_V, weight_CV, bias_C)


def row_words(names: Sequence[str], fields: Mapping[str, str]) -> list[str]:
    """Return lower-case words and pairs of neighbours; each is marked with its field if a row has several."""
    words = []
    for name in names:
        mark = f"{name}:" if len(names) > 1 else ""
        parts = WORD.findall(fields[name].lower())
        words += [mark + word for word in parts] + [f"{mark}{a} {b}" for a, b in pairwise(parts)]
    return words
