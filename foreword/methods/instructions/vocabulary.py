"""Compute log-probabilities of every token at one column of each row, as proposing word by word needs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from foreword.core.shapes import Float, Tensor
from foreword.inference.batched import map_rows
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded, collate, prepare


@torch.no_grad()
def piece_logprobs(lm: FrozenLM, rows: Sequence[Sequence[int]], at: Sequence[int]) -> Float[Tensor, "B V"]:
    """Return log p(token) at column `at` of each row (masked), or right after it (causal); special tokens have -inf."""
    encoded = [
        Encoded(np.array(ids, np.int64), np.full(len(ids), -1, np.int64), column, None)
        for ids, column in zip(rows, at, strict=True)
    ]

    def read(chosen: list[int]) -> Tensor:
        batch = collate([encoded[i] for i in chosen])
        inputs, _ = prepare(lm, batch, None, torch.zeros(len(chosen), dtype=torch.long))
        hidden_BRD = lm.hidden_at(replace(inputs, read_BR=batch.read_BR.to(lm.device)))
        return lm.vocabulary_logits(hidden_BRD[:, 0]).cpu()

    logits_BV = torch.stack(map_rows(encoded, lm.batch_tokens, read))
    special = [i for i in special_ids(lm) if i < logits_BV.shape[1]]
    logits_BV[:, special] = -torch.inf
    return logits_BV.log_softmax(-1)


def special_ids(lm: FrozenLM) -> list[int]:
    """Return the ids of special tokens, which no words may have."""
    added = lm.tokenizer.added_tokens_decoder
    return sorted({*lm.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)})
