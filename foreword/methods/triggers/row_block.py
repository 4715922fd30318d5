"""Some rows of a pool, read with many prompts. For causal models what stands before the slots is read once a search."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import torch

from foreword.core.prompts import Bank, HardPrompt
from foreword.core.shapes import Float, Int, Tensor
from foreword.inference.batched import stacked_scores
from foreword.methods.triggers.objective import Objective, readied
from foreword.methods.triggers.slots import Prompt, columns_of
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Encoded, collate, prepare
from foreword.models.score import score, score_all

Way = Literal["whole", "cached", "led"]


@final
@dataclass(frozen=True, eq=False)
class Block:
    """Encoded rows with open slots, and their labels.

    `way` says how they are read. "cached": each row's keys and values up to its first slot, and those of a base
    prompt's slots, stand in `bank`, and only what follows the first slot that differs is computed. "led": slots come
    before all text, so a prompt's keys and values are read once for all rows. "whole": every row anew (masked models).
    """

    lm: FrozenLM
    rows: tuple[Encoded, ...]
    label_B: Int[Tensor, "B"]
    way: Way
    columns_BT: Int[np.ndarray, "B T"]
    first_B: Int[np.ndarray, "B"]  # the column from which a row is computed anew when its first slot differs
    bank: Bank | None
    shared: bool  # whether slots stand at the same distance from the first one in every row

    @staticmethod
    def build(
        lm: FrozenLM, rows: Sequence[Encoded], labels: Sequence[int], length: int, objective: Objective,
        *, reuse: bool = True,
    ) -> "Block":  # fmt: skip
        """`length` slots in every row; `reuse` False reads every row whole, for checks and comparisons."""
        rows = readied(rows, objective)
        columns_BT = np.stack([columns_of(e.slot_S, length) for e in rows])
        first_B = columns_BT.min(1)
        offsets_BT = columns_BT - first_B[:, None]
        way = _way(lm, rows, columns_BT) if reuse else "whole"
        bank = _bank(lm, rows, first_B, int(offsets_BT.max()) + 1) if way == "cached" else None
        shared = bool((offsets_BT == offsets_BT[:1]).all())
        return Block(lm, tuple(rows), torch.tensor(labels), way, columns_BT, first_B, bank, shared)

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def set_base(self, prompt: Prompt) -> None:
        """The prompt that those read next differ from at few slots: its keys and values are put beside the rows'."""
        if self.bank is None or not self.shared or self.bank.keys_TNQHK is None or self.bank.values_TNQHK is None:
            return
        span = int((self.columns_BT - self.first_B[:, None]).max()) + 1
        middles = [
            Encoded(ids_S[at : at + span], np.full(span, -1, np.int64), span - 1, None)
            for ids_S, at in zip(self._filled(prompt), self.first_B, strict=True)
        ]
        rows = torch.arange(len(self))
        inputs, prefix = prepare(self.lm, collate(middles), self._before(0), rows)
        keys_NBSHK, values_NBSHK = self.lm.states(inputs, prefix)
        at_BS = torch.from_numpy(self.first_B)[:, None] + torch.arange(span)
        for whole, new in ((self.bank.keys_TNQHK, keys_NBSHK), (self.bank.values_TNQHK, values_NBSHK)):
            whole.transpose(1, 2)[rows[:, None], at_BS] = new.permute(1, 2, 0, 3, 4).to(whole)

    @torch.no_grad()
    def scores(self, prompts: Sequence[Prompt], since: Sequence[int] | None = None) -> Float[Tensor, "X B C"]:
        """Each prompt's label scores of all rows. Prompt x has the base's tokens in all slots before number `since[x]`
        in the order of columns (None: nothing is said of a base)."""
        if self.way == "led":
            values = [HardPrompt(torch.tensor(p)) for p in prompts]
            return torch.stack(stacked_scores(self.lm, values, [self.rows] * len(prompts)))
        found: list[Tensor | None] = [None] * len(prompts)
        offsets = self._offsets(since, len(prompts))
        for offset in dict.fromkeys(offsets):
            own = [i for i, o in enumerate(offsets) if o == offset]
            encoded = [e for i in own for e in self._tails(prompts[i], offset)]
            task_B = torch.arange(len(self)).repeat(len(own))
            score_XC = score_all(self.lm, encoded, self._before(offset), task_B)
            for i, score_BC in zip(own, score_XC.split(len(self)), strict=True):
                found[i] = score_BC
        return torch.stack([f for f in found if f is not None])

    def soft_scores(self, embed_PD: Float[Tensor, "P D"], chosen: Sequence[int]) -> Float[Tensor, "B C"]:
        """Label scores of some rows with these embeddings in the slots; differentiable in them alone."""
        rows = torch.tensor(chosen)
        soft_TPD = embed_PD[None]
        if self.way != "cached":
            bank = Bank(soft_TPD, None, None, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
            bank = _on(bank, self.lm)
            return score(self.lm, [self.rows[i] for i in chosen], bank, torch.zeros(len(rows), dtype=torch.long))
        before = self._before(0)
        assert before is not None, "cached rows have a bank"
        bank = replace(before, soft_TPD=soft_TPD.expand(len(self), -1, -1))
        tails = [_tail(self.rows[i], self.rows[i].ids_S, self.rows[i].slot_S, int(self.first_B[i])) for i in chosen]
        return score(self.lm, tails, bank, rows)

    def tail_tokens(self, since: int | None) -> int:
        """How many tokens reading one prompt computes, label words aside: all of them, or those from a slot on."""
        if self.way != "cached":
            return sum(len(e.ids_S) for e in self.rows)
        [offset] = self._offsets([since or 0], 1)
        return sum(len(e.ids_S) - int(f) - offset for e, f in zip(self.rows, self.first_B, strict=True))

    def _offsets(self, since: Sequence[int] | None, count: int) -> list[int]:
        """How many columns after a row's first slot a prompt begins to differ."""
        if since is None or self.way != "cached" or not self.shared:
            return [0] * count
        ordered = np.sort(self.columns_BT[0]) - self.first_B[0]
        return [int(ordered[s]) for s in since]

    def _before(self, offset: int) -> Bank | None:
        """The keys and values of so many columns after each row's first slot, and of all before it."""
        if self.bank is None:
            return None
        assert self.bank.keys_TNQHK is not None and self.bank.values_TNQHK is not None, "made so"
        length_T = self.bank.prefix_length_T + offset
        most = int(length_T.max())
        return replace(
            self.bank,
            keys_TNQHK=self.bank.keys_TNQHK[:, :, :most],
            values_TNQHK=self.bank.values_TNQHK[:, :, :most],
            prefix_length_T=length_T,
            start_T=length_T,
        )

    def _filled(self, prompt: Prompt) -> list[np.ndarray]:
        filled = []
        for e, columns_T in zip(self.rows, self.columns_BT, strict=True):
            ids_S = e.ids_S.copy()
            ids_S[columns_T] = prompt
            filled.append(ids_S)
        return filled

    def _tails(self, prompt: Prompt, offset: int) -> list[Encoded]:
        """The rows with a prompt in their slots, from the column on at which they are computed."""
        cached = self.way == "cached"
        return [
            _tail(e, ids_S, np.full(len(ids_S), -1, np.int64), int(at) + offset if cached else 0)
            for e, ids_S, at in zip(self.rows, self._filled(prompt), self.first_B, strict=True)
        ]


def _tail(e: Encoded, ids_S: np.ndarray, slot_S: np.ndarray, at: int) -> Encoded:
    return Encoded(ids_S[at:], slot_S[at:], e.answer - at, e.plan, e.cut)


def _way(lm: FrozenLM, rows: Sequence[Encoded], columns_BT: Int[np.ndarray, "B T"]) -> Way:
    if lm.kind != "causal" or not lm.takes_prefix:
        return "whole"
    if all(int(columns.max()) < e.lead for e, columns in zip(rows, columns_BT, strict=True)):
        return "led"
    alike = all(lm.begins_alike(int(columns.min()), len(e)) for e, columns in zip(rows, columns_BT, strict=True))
    return "cached" if int(columns_BT.min()) > 0 and alike else "whole"


@torch.no_grad()
def _bank(lm: FrozenLM, rows: Sequence[Encoded], first_B: Int[np.ndarray, "B"], span: int) -> Bank:
    """Keys and values of each row up to its first slot, with room for those of `span` columns more."""
    heads = [Encoded(e.ids_S[:f], e.slot_S[:f], int(f) - 1, None) for e, f in zip(rows, first_B, strict=True)]
    pairs: list[tuple[Tensor, Tensor]] = []
    at = 0
    while at < len(heads):  # a pass has as many tokens as suit the device
        count = max(1, lm.batch_tokens // max(len(e.ids_S) for e in heads[at:]))
        inputs, _ = prepare(lm, collate(heads[at : at + count]), None, torch.zeros(count, dtype=torch.long))
        pairs.append(lm.states(inputs))
        at += count
    columns = int(first_B.max()) + span
    layers, heads_n, size = pairs[0][0].shape[0], pairs[0][0].shape[3], pairs[0][0].shape[4]
    whole = [pairs[0][0].new_zeros(len(heads), layers, columns, heads_n, size) for _ in range(2)]
    at = 0
    for pair in pairs:
        for tensor, states_NBSHK in zip(whole, pair, strict=True):
            part = states_NBSHK.transpose(0, 1)
            tensor[at : at + part.shape[0], :, : part.shape[2]] = part
        at += pair[0].shape[1]
    length_T = torch.from_numpy(first_B).to(lm.device)
    return Bank(None, whole[0], whole[1], length_T, length_T)


def _on(bank: Bank, lm: FrozenLM) -> Bank:
    return replace(bank, prefix_length_T=bank.prefix_length_T.to(lm.device), start_T=bank.start_T.to(lm.device))
