"""The likelihood of given texts after rows: exact, in mixed batches, what leads the rows read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from foreword.core.format import Format
from foreword.core.shapes import Float, Int, Tensor
from foreword.core.values import Learnt
from foreword.inference.batched import stacked_scores
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder
from foreword.tasks.rows import Row


@final
@dataclass(frozen=True, eq=False)
class LikelihoodRequest:
    """A prompt with its format, the rows to put to it, and the text whose likelihood is asked for in each."""

    value: Learnt
    format: Format
    rows: Sequence[Row]
    texts: Sequence[str]


@final
@dataclass(frozen=True, eq=False)
class Likelihood:
    """Log-likelihood of each row's whole text, and how many pieces the text has."""

    logprob_N: Float[Tensor, "N"]
    pieces_N: Int[Tensor, "N"]

    @property
    def mean_N(self) -> Float[Tensor, "N"]:
        """Per piece, so that long texts do not count for more (Zhou et al. 2022)."""
        return self.logprob_N / self.pieces_N.to(self.logprob_N)


def text_likelihoods(
    lm: FrozenLM, asked: Sequence[LikelihoodRequest], tokens_per_batch: int | None = None
) -> list[Likelihood]:
    """log p(text | prompt, row) of each row: the chain rule over all its pieces, each normalised over the vocabulary.

    For a masked model the sum over as many masks, filled independently. Label words, shifts and temperatures of the
    format have no part in it.

    Raises: DataError for a row that lacks a field or is too long, or a text without pieces.
    """
    encoded = [Encoder.build(lm, a.format, a.value.text_start).encode_texts(a.rows, a.texts) for a in asked]
    scores = stacked_scores(lm, [a.value for a in asked], encoded, tokens_per_batch)
    results = []
    for rows, score_N1 in zip(encoded, scores, strict=True):
        pieces = [row.plan.longest if row.plan else 0 for row in rows]
        logprob_N = score_N1[:, 0].cpu() if rows else torch.zeros(0)
        results.append(Likelihood(logprob_N, torch.tensor(pieces, dtype=torch.long)))
    return results
