"""Explain a prompt: each token's share of the loss, and what the model expects with and without the prompt."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from foreword.errors import ModelError
from foreword.methods.triggers.objective import readied, row_losses
from foreword.methods.triggers.prompt_slots import Prompt, columns_of
from foreword.methods.triggers.search_space import SearchSpace
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Encoded, collate, prepare
from foreword.models.score import score_all

ROWS, WORDS = 64, 10


def explained(field: SearchSpace, prompt: Prompt) -> dict[str, Any]:
    """Return losses on the pool with each token left out, and the likeliest words at the answer position, over rows."""
    rows = field.encoded[:ROWS]
    seen = prompt_attention(field, prompt)
    return {
        "tokens": field.words(prompt),
        "without_token": [
            {"token": word, "loss": loss}
            for word, loss in zip(field.words(prompt), leave_one_out(field, prompt), strict=True)
        ],
        **({"attention": seen} if seen else {}),
        "top_words": {
            "with": top_words(field, [with_prompt(e, prompt, ()) for e in rows]),
            "without": top_words(field, [with_prompt(e, prompt, range(len(prompt))) for e in rows]),
        },
    }


def leave_one_out(field: SearchSpace, prompt: Prompt) -> list[float]:
    """Return the pool's mean loss without each of the tokens, with its column removed from every row."""
    labels = torch.cat([block.label_B for block in field.pool.blocks])
    encoded = readied(field.encoded, field.objective)
    losses = []
    for slot in range(len(prompt)):
        rows = [with_prompt(e, prompt, (slot,)) for e in encoded]
        score_NC = score_all(field.lm, rows, None, torch.zeros(len(rows), dtype=torch.long))
        losses.append(float(row_losses(score_NC, labels.to(score_NC.device), field.objective).double().mean()))
    return losses


def prompt_attention(field: SearchSpace, prompt: Prompt) -> list[dict[str, Any]]:
    """Return the attention from the answer position to each token, over all layers and in the last one.

    Weights are averaged over rows and heads. They say where the model looks, not what moves its answer (Jain & Wallace
    2019); the losses without a token do. The list is empty for a model that does not show its weights.
    """
    rows = [with_prompt(e, prompt, ()) for e in field.encoded[:ROWS]]
    columns = [columns_of(e.slot_S, len(prompt)) for e in field.encoded[:ROWS]]
    total_NP = None
    for row, columns_P in zip(rows, columns, strict=True):
        inputs, _ = prepare(field.lm, collate([row]), None, torch.zeros(1, dtype=torch.long))
        try:
            weights_NHS = field.lm.attention(inputs)[:, 0]
        except ModelError:
            return []
        own_NP = weights_NHS.double().mean(1)[:, torch.from_numpy(columns_P)]
        total_NP = own_NP if total_NP is None else total_NP + own_NP
    assert total_NP is not None, "a pool has rows"
    mean_NP = total_NP / len(rows)
    return [
        {
            "token": word,
            "all_layers": round(float(mean_NP[:, i].mean()), 6),
            "last_layer": round(float(mean_NP[-1, i]), 6),
        }
        for i, word in enumerate(field.words(prompt))
    ]


def with_prompt(e: Encoded, prompt: Prompt, without: Sequence[int]) -> Encoded:
    """Return the row with a prompt in its slots, and without the columns of some slots."""
    columns_T = columns_of(e.slot_S, len(prompt))
    ids_S = e.ids_S.copy()
    ids_S[columns_T] = prompt
    gone = columns_T[list(without)]
    kept = np.delete(ids_S, gone)
    answer = e.answer - int((gone < e.answer).sum())
    if e.answer in gone:  # a causal row whose answer is read at its last slot
        answer = max(0, answer - 1)
    return replace(e, ids_S=kept, slot_S=np.full(len(kept), -1, np.int64), answer=answer, shared=0)


@torch.no_grad()
def top_words(field: SearchSpace, rows: Sequence[Encoded]) -> list[dict[str, Any]]:
    """Return the likeliest tokens at the answer position and their mean probability over the rows."""
    mean_V = mean_prediction(field.lm, rows)
    best = mean_V.topk(min(WORDS, len(field.surfaces)))
    return [
        {"word": field.words((int(i),))[0].strip(" "), "probability": round(float(p), 6)}
        for p, i in zip(best.values, best.indices, strict=True)
        if int(i) < len(field.surfaces)
    ]


@torch.no_grad()
def mean_prediction(lm: FrozenLM, rows: Sequence[Encoded]) -> torch.Tensor:
    """Return the vocabulary's probabilities at the answer position, averaged over the rows: (V,)."""
    total = torch.zeros(lm.dims.vocab, dtype=torch.float64)
    for at in range(0, len(rows), 8):
        part = rows[at : at + 8]
        inputs, _ = prepare(lm, collate(part), None, torch.zeros(len(part), dtype=torch.long))
        logits_BV = lm.vocabulary_logits(lm.hidden_at(inputs)[:, 0])
        total += logits_BV.double().softmax(-1).sum(0).cpu()
    return total / len(rows)
