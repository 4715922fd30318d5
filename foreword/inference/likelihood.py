"""Compute the exact likelihood of given texts after rows, in mixed batches; what rows begin with is read once."""

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
    """Hold a prompt with its format, its rows, and for each row the text whose likelihood after it is computed."""

    value: Learnt
    format: Format
    rows: Sequence[Row]
    texts: Sequence[str]


@final
@dataclass(frozen=True, eq=False)
class Likelihood:
    """Hold the log-likelihood of each row's whole text, and the text's number of tokens."""

    logprob_N: Float[Tensor, "N"]
    pieces_N: Int[Tensor, "N"]

    @property
    def mean_N(self) -> Float[Tensor, "N"]:
        """Return the log-likelihood per token, so that long texts do not count for more (Zhou et al. 2022)."""
        return self.logprob_N / self.pieces_N.to(self.logprob_N)


def text_likelihoods(
    lm: FrozenLM, asked: Sequence[LikelihoodRequest], tokens_per_batch: int | None = None
) -> list[Likelihood]:
    """Return log p(text | prompt, row) of each row: the sum over its tokens, each normalised over the vocabulary.

    This is the chain rule, except for a masked model: there the sum is over as many masks, filled independently. Label
    words, shifts and temperatures of the format have no effect.

    Raises: DataError for a row that lacks a field or is too long, or a text without tokens.
    """
    encoded = [Encoder.build(lm, a.format, a.value.text_start).encode_texts(a.rows, a.texts) for a in asked]
    scores = stacked_scores(lm, [a.value for a in asked], encoded, tokens_per_batch)
    results = []
    for rows, score_N1 in zip(encoded, scores, strict=True):
        pieces = [row.plan.longest if row.plan else 0 for row in rows]
        logprob_N = score_N1[:, 0].cpu() if rows else torch.zeros(0)
        results.append(Likelihood(logprob_N, torch.tensor(pieces, dtype=torch.long)))
    return results
