"""Hold encoded rows, split them, and turn them into the tensors of one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import torch

from foreword.core.inject import PrefixBatch, inject_prefix, inject_soft
from foreword.core.prompts import Bank
from foreword.core.shapes import Bool, Float, Int, Tensor
from foreword.errors import ConfigError
from foreword.models.base import EncoderSource, FrozenLM, Inputs
from foreword.models.encoding.label_layout import LabelPlan


@final
@dataclass(frozen=True, eq=False)
class SourceRow:
    """Hold what an encoder reads of a row; its slots are filled from the same prompt as the decoder's."""

    ids_S: Int[np.ndarray, "S"]
    slot_S: Int[np.ndarray, "S"]


@final
@dataclass(frozen=True, eq=False)
class Encoded:
    """Hold a row as tokens. `slot_S` is -1 for text, else the position of the prompt that goes there.

    `answer` is the column read: the mask, or a causal row's last. `plan` is None if there are no label words. `cut`
    counts tokens that truncation took. The row has its first `shared` columns in common with all rows of its format
    that have the same number. For an encoder-decoder model all this is the decoder's, and `source` is the encoder's.
    """

    ids_S: Int[np.ndarray, "S"]
    slot_S: Int[np.ndarray, "S"]
    answer: int
    plan: LabelPlan | None
    cut: int = 0
    shared: int = 0
    source: SourceRow | None = None

    @property
    def text_ids(self) -> list[int]:
        """Return the ids of the row without its slots: the text that generation continues."""
        return [int(i) for i, slot in zip(self.ids_S, self.slot_S, strict=True) if slot < 0]

    def __len__(self) -> int:
        """Return the columns of the row in the model, with those of the label words that are read with it."""
        return len(self.ids_S) + (self.plan.grow if self.plan else 0)

    @property
    def cost(self) -> int:
        """Return the columns of all model rows that one pass takes; very many label words take several passes."""
        read = 0 if self.source is None else len(self.source.ids_S)
        return read + (self.plan.cost(len(self.ids_S)) if self.plan else len(self.ids_S))

    @property
    def tokens(self) -> int:
        """Return the columns of all model rows that scoring the row takes, in all its passes."""
        read = 0 if self.source is None else len(self.source.ids_S)
        return read + (self.plan.tokens(len(self.ids_S)) if self.plan else len(self.ids_S))

    def split(self, at: int | None = None) -> tuple["Encoded", "Encoded"]:
        """Return the row's first `at` columns (None: those that it shares), and the rest with its answer and plan."""
        at = self.shared if at is None else at
        ids_S, slot_S = self.ids_S, self.slot_S
        rest = replace(self, ids_S=ids_S[at:], slot_S=slot_S[at:], answer=self.answer - at, shared=0)
        return Encoded(ids_S[:at], slot_S[:at], at - 1, None), rest


@final
@dataclass(frozen=True, eq=False)
class SourceBatch:
    """Hold what an encoder reads, padded on the right."""

    ids_BS: Int[Tensor, "B S"]
    slot_BS: Int[Tensor, "B S"]
    attend_BS: Bool[Tensor, "B S"]

    def of_rows(self, row_M: Int[Tensor, "M"]) -> "SourceBatch":
        return SourceBatch(self.ids_BS[row_M], self.slot_BS[row_M], self.attend_BS[row_M])


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Hold encoded rows, padded. Positions count real tokens from 0."""

    ids_BS: Int[Tensor, "B S"]
    slot_BS: Int[Tensor, "B S"]
    attend_BS: Bool[Tensor, "B S"]
    position_BS: Int[Tensor, "B S"]
    read_BR: Int[Tensor, "B R"]
    source: SourceBatch | None = None

    @property
    def slots(self) -> int:
        """Return how many positions of a prompt the rows have slots for."""
        own = int(self.slot_BS.max()) + 1
        return own if self.source is None else max(own, int(self.source.slot_BS.max()) + 1)


def collate(encoded: Sequence[Encoded], pad: Literal["right", "left"] = "right") -> Batch:
    """Pad rows to the longest, on the CPU; `read_BR` is the answer's column."""
    ids_BS, slot_BS, real_BS = _padded(encoded, pad)
    shift_B = ids_BS.shape[1] - real_BS.sum(1) if pad == "left" else 0
    read_BR = (np.array([e.answer for e in encoded]) + shift_B)[:, None]
    position_BS = np.maximum(real_BS.cumsum(1) - 1, 0)
    sources = [e.source for e in encoded if e.source is not None]
    source = SourceBatch(*map(torch.from_numpy, _padded(sources, "right"))) if sources else None
    assert len(sources) in (0, len(encoded)), "the rows are for one model"
    ids, slots, real, position, read = map(torch.from_numpy, (ids_BS, slot_BS, real_BS, position_BS, read_BR))
    return Batch(ids, slots, real, position, read, source)


def _padded(
    rows: Sequence[Encoded] | Sequence[SourceRow], pad: Literal["right", "left"]
) -> tuple[Int[np.ndarray, "B S"], Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
    length_B = np.array([len(row.ids_S) for row in rows])
    real_BS = np.arange(int(length_B.max())) < length_B[:, None]
    if pad == "left":
        real_BS = np.ascontiguousarray(real_BS[:, ::-1])
    ids_BS = np.zeros(real_BS.shape, np.int64)
    slot_BS = np.full(real_BS.shape, -1, np.int64)
    ids_BS[real_BS] = np.concatenate([row.ids_S for row in rows])
    slot_BS[real_BS] = np.concatenate([row.slot_S for row in rows])
    return ids_BS, slot_BS, real_BS


def prepare(
    lm: FrozenLM,
    batch: Batch,
    bank: Bank | None,
    task_B: Int[Tensor, "B"],
    tree_BSS: Bool[Tensor, "B S S"] | None = None,
) -> tuple[Inputs, PrefixBatch | None]:
    """Return a batch embedded on the model's device, with each row's own prompt in its slots, and the prefix of each
    row (or None); differentiable in the bank.

    Raises: ConfigError if rows have more slots than the bank's prompts have positions.
    """
    slots = batch.slots
    given = 0 if bank is None or bank.soft_TPD is None else bank.soft_TPD.shape[1]
    if slots > given:
        raise ConfigError(
            f"The template has slots for {slots} positions, and the prompt given fills {given}; give a prompt of "
            f"length {slots}, or a template without slots."
        )
    task_B = task_B.to(lm.device)
    text_BSD = _embedded(lm, batch, bank, task_B)
    prefix = None if bank is None else inject_prefix(bank, task_B, lm.dtype)
    source = None
    if batch.source is not None:
        source = EncoderSource(_embedded(lm, batch.source, bank, task_B), batch.source.attend_BS.to(lm.device))
    inputs = Inputs(
        embed_BSD=text_BSD,
        attend_BS=batch.attend_BS.to(lm.device),
        position_BS=batch.position_BS.to(lm.device),
        read_BR=batch.read_BR.to(lm.device),
        tree_BSS=None if tree_BSS is None else tree_BSS.to(lm.device),
        source=source,
    )
    return inputs, prefix


def _embedded(lm: FrozenLM, batch: Batch | SourceBatch, bank: Bank | None, task_B: Tensor) -> Float[Tensor, "B S D"]:
    text_BSD = lm.embed(batch.ids_BS.to(lm.device))
    return text_BSD if bank is None else inject_soft(bank, task_B, batch.slot_BS.to(lm.device), text_BSD)
