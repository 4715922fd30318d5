"""Rows as token ids, and frozen hidden states of rows."""

from collections.abc import Sequence

import torch

from foreword.core.format import Format
from foreword.core.shapes import Float, Tensor
from foreword.inference.batched import batches_of
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded, Encoder, collate, prepare
from foreword.tasks.rows import Row


def encode_rows(lm: FrozenLM, form: Format, rows: Sequence[Row], extra: int = 0) -> list[Encoded]:
    """Rows as token ids and slots; `extra` positions are left to a prefix."""
    return Encoder.build(lm, form, extra).encode_rows(rows)


@torch.no_grad()
def row_features(lm: FrozenLM, form: Format, rows: Sequence[Row], pool: str) -> Float[Tensor, "N D"]:
    """Frozen hidden states of each row: at the "answer" position, there but after the output head's transform ("head"),
    or averaged over its tokens ("mean")."""
    encoded = encode_rows(lm, form, rows)
    out: list[Tensor | None] = [None] * len(encoded)
    for batch in batches_of(encoded, lm.batch_tokens):
        inputs, _ = prepare(lm, collate([encoded[i] for i in batch]), None, torch.zeros(len(batch), dtype=torch.long))
        read = (
            lm.hidden_at(inputs)[:, 0]
            if pool == "head"
            else lm.features(inputs, "mean" if pool == "mean" else "answer")
        )
        features = read.float().cpu()
        for index, feature in zip(batch, features, strict=True):
            out[index] = feature
    return torch.stack([f for f in out if f is not None])
