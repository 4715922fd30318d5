"""Encode rows as token ids, once for each format, and read their frozen hidden states."""

from collections.abc import Sequence
from typing import final

import torch

from foreword.core.format import Format
from foreword.core.shapes import Float, Tensor
from foreword.inference.batched import map_rows
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded, Encoder, collate, prepare
from foreword.tasks.rows import Row


def encode_rows(lm: FrozenLM, form: Format, rows: Sequence[Row], extra: int = 0) -> list[Encoded]:
    """Return rows as token ids and slots; `extra` positions are left to a prefix."""
    return Encoder.build(lm, form, extra).encode_rows(rows)


@final
class EncodedRows:
    """Encode each row once for each format and keep it for all readers in one run: training, calibration and metrics.

    Encoded rows are kept until `clear`. Rows are told apart by identity.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str, Format, int], dict[int, tuple[Row, Encoded]]] = {}

    def of(self, lm: FrozenLM, form: Format, rows: Sequence[Row], extra: int = 0) -> list[Encoded]:
        """Return what `encode_rows` does; only rows that are new in this format are tokenised."""
        key = (id(lm.tokenizer), lm.kind, form, extra)
        new = [row for row in rows if id(row) not in self._known.get(key, {})]
        if new or key not in self._known:
            encoded = encode_rows(lm, form, new, extra)
            # Each row is kept with its tokens, so that no other row gets its identity.
            self._known.setdefault(key, {}).update((id(r), (r, e)) for r, e in zip(new, encoded, strict=True))
        return [self._known[key][id(row)][1] for row in rows]

    def clear(self) -> None:
        """Forget all rows."""
        self._known.clear()


@torch.no_grad()
def row_features(
    lm: FrozenLM, form: Format, rows: Sequence[Row], pool: str, encoded_rows: EncodedRows | None = None
) -> Float[Tensor, "N D"]:
    """Return frozen hidden states of each row (rows, dimensions), at the position that `pool` names.

    "answer" is the answer's position, "head" the same after the output head's transform, and "mean" the average over
    the row's tokens.
    """
    return features_of(lm, (encoded_rows or EncodedRows()).of(lm, form, rows), pool).float()


@torch.no_grad()
def features_of(lm: FrozenLM, encoded: Sequence[Encoded], pool: str) -> Float[Tensor, "N D"]:
    """Return frozen hidden states of encoded rows, as `row_features` says, in the model's dtype on the CPU."""

    def read(batch: list[int]) -> Tensor:
        inputs, _ = prepare(lm, collate([encoded[i] for i in batch]), None, torch.zeros(len(batch), dtype=torch.long))
        if pool == "head":
            return lm.hidden_at(inputs)[:, 0].cpu()
        return lm.features(inputs, "mean" if pool == "mean" else "answer").cpu()

    return torch.stack(map_rows(encoded, lm.batch_tokens, read))
