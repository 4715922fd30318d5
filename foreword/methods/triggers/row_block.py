"""Read rows with many prompts. For causal models, read what stands before the slots once a search."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import torch
from torch.nn.functional import pad

from foreword.core.prompts import Bank, HardPrompt
from foreword.core.shapes import Float, Int, Tensor
from foreword.inference.batched import stacked_scores
from foreword.methods.triggers.objective import Objective, readied
from foreword.methods.triggers.prompt_slots import Prompt, columns_of
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Encoded, collate, prepare
from foreword.models.score import score, score_all
from foreword.models.shared_prefix import bank_after, can_split, compile_in_passes

Way = Literal["whole", "cached", "shared"]


@final
@dataclass(frozen=True, eq=False)
class Block:
    """Hold encoded rows with open slots, and their labels.

    `way` says how they are read. "cached": `bank` has each row's keys and values up to its first slot, and those of a
    base prompt's slots; only what follows the first slot that differs is computed. "shared": slots come before all
    text, so a prompt's keys and values are read once for all rows. "whole": each prompt reads all rows whole (masked
    models).
    """

    lm: FrozenLM
    rows: tuple[Encoded, ...]
    label_B: Int[Tensor, "B"]
    way: Way
    columns_BT: Int[np.ndarray, "B T"]
    first_B: Int[np.ndarray, "B"]  # the column from which a row is computed anew when its first slot differs
    bank: Bank | None
    aligned: bool  # whether slots stand at the same distance from the first one in every row

    @staticmethod
    def build(
        lm: FrozenLM, rows: Sequence[Encoded], labels: Sequence[int], length: int, objective: Objective,
        *, reuse: bool = True,
    ) -> "Block":  # fmt: skip
        """Build a block of `length` slots a row; `reuse` False reads every row whole, for checks and comparisons."""
        rows = readied(rows, objective)
        columns_BT = np.stack([columns_of(e.slot_S, length) for e in rows])
        first_B = columns_BT.min(1)
        offsets_BT = columns_BT - first_B[:, None]
        way = _way(lm, rows, columns_BT) if reuse else "whole"
        bank = _bank(lm, rows, first_B, int(offsets_BT.max()) + 1) if way == "cached" else None
        aligned = bool((offsets_BT == offsets_BT[:1]).all())
        return Block(lm, tuple(rows), torch.tensor(labels), way, columns_BT, first_B, bank, aligned)

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def set_base(self, prompt: Prompt) -> None:
        """Put the keys and values of a prompt beside the rows'; the prompts read next differ from it at few slots."""
        if self.bank is None or not self.aligned or self.bank.keys_TNQHK is None or self.bank.values_TNQHK is None:
            return
        span = int((self.columns_BT - self.first_B[:, None]).max()) + 1
        filled = zip(self._filled(prompt), self.first_B.tolist(), strict=True)
        middles = [row.split(at + span)[0].split(at)[1] for row, at in filled]
        rows = torch.arange(len(self))
        inputs, prefix = prepare(self.lm, collate(middles), self._before(0), rows)
        keys_NBSHK, values_NBSHK = self.lm.states(inputs, prefix)
        at_BS = torch.from_numpy(self.first_B)[:, None] + torch.arange(span)
        for whole, new in ((self.bank.keys_TNQHK, keys_NBSHK), (self.bank.values_TNQHK, values_NBSHK)):
            whole.transpose(1, 2)[rows[:, None], at_BS] = new.permute(1, 2, 0, 3, 4).to(whole)

    @torch.no_grad()
    def scores(self, prompts: Sequence[Prompt], since: Sequence[int] | None = None) -> Float[Tensor, "X B C"]:
        """Return each prompt's label scores of all rows. Prompt x has the base's tokens in all slots before number
        `since[x]` in the order of columns (None: there is no base)."""
        if self.way == "shared":
            values = [HardPrompt(torch.tensor(p)) for p in prompts]
            return torch.stack(stacked_scores(self.lm, values, [self.rows] * len(prompts)))
        scores: list[Tensor | None] = [None] * len(prompts)
        offsets = self._offsets(since, len(prompts))
        for offset in dict.fromkeys(offsets):
            alike = [i for i, o in enumerate(offsets) if o == offset]
            encoded = [e for i in alike for e in self._tails(prompts[i], offset)]
            task_B = torch.arange(len(self)).repeat(len(alike))
            score_XC = score_all(self.lm, encoded, self._before(offset), task_B)
            for i, score_BC in zip(alike, score_XC.split(len(self)), strict=True):
                scores[i] = score_BC
        return torch.stack([score_BC for score_BC in scores if score_BC is not None])

    def soft_scores(self, embed_PD: Float[Tensor, "P D"], chosen: Sequence[int]) -> Float[Tensor, "B C"]:
        """Return label scores of some rows with these embeddings in the slots; differentiable in them alone."""
        rows = torch.tensor(chosen)
        soft_TPD = embed_PD[None]
        if self.way != "cached":
            bank = Bank(soft_TPD, None, None, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
            bank = _on(bank, self.lm)
            return score(self.lm, [self.rows[i] for i in chosen], bank, torch.zeros(len(rows), dtype=torch.long))
        before = self._before(0)
        assert before is not None, "cached rows have a bank"
        bank = replace(before, soft_TPD=soft_TPD.expand(len(self), -1, -1))
        tails = [self.rows[i].split(int(self.first_B[i]))[1] for i in chosen]
        return score(self.lm, tails, bank, rows)

    def tail_tokens(self, since: int | None) -> int:
        """Return how many tokens reading one prompt computes, without label words: all, or those from a slot on."""
        if self.way != "cached":
            return sum(len(e.ids_S) for e in self.rows)
        [offset] = self._offsets([since or 0], 1)
        return sum(len(e.ids_S) - int(f) - offset for e, f in zip(self.rows, self.first_B, strict=True))

    def _offsets(self, since: Sequence[int] | None, count: int) -> list[int]:
        """Return how many columns after a row's first slot each prompt begins to differ."""
        if since is None or self.way != "cached" or not self.aligned:
            return [0] * count
        ordered = np.sort(self.columns_BT[0]) - self.first_B[0]
        return [int(ordered[s]) for s in since]

    def _before(self, offset: int) -> Bank | None:
        """Return the keys and values of all columns before each row's first slot, and of `offset` columns after."""
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

    def _filled(self, prompt: Prompt) -> list[Encoded]:
        """Return the rows with a prompt's ids in their slots."""
        filled = []
        for e, columns_T in zip(self.rows, self.columns_BT, strict=True):
            ids_S = e.ids_S.copy()
            ids_S[columns_T] = prompt
            filled.append(replace(e, ids_S=ids_S, slot_S=np.full(len(ids_S), -1, np.int64)))
        return filled

    def _tails(self, prompt: Prompt, offset: int) -> list[Encoded]:
        """Return the rows with a prompt in their slots, from the column on at which they are computed."""
        if self.way != "cached":
            return self._filled(prompt)
        return [row.split(int(at) + offset)[1] for row, at in zip(self._filled(prompt), self.first_B, strict=True)]


def _way(lm: FrozenLM, rows: Sequence[Encoded], columns_BT: Int[np.ndarray, "B T"]) -> Way:
    if lm.kind != "causal" or not lm.takes_prefix:
        return "whole"
    if all(int(columns.max()) < e.shared for e, columns in zip(rows, columns_BT, strict=True)):
        return "shared"
    split = all(can_split(lm, e, int(columns.min())) for e, columns in zip(rows, columns_BT, strict=True))
    return "cached" if split else "whole"


def _bank(lm: FrozenLM, rows: Sequence[Encoded], first_B: Int[np.ndarray, "B"], span: int) -> Bank:
    """Return the keys and values of each row up to its first slot, with room for those of `span` columns more."""
    texts = [row.split(int(at))[0] for row, at in zip(rows, first_B, strict=True)]
    bank = bank_after(lm, compile_in_passes(lm, texts, lm.batch_tokens))
    assert bank.keys_TNQHK is not None and bank.values_TNQHK is not None, "every row has text before its slots"
    keys, values = (pad(states, (0, 0, 0, 0, 0, span)) for states in (bank.keys_TNQHK, bank.values_TNQHK))
    return replace(bank, keys_TNQHK=keys, values_TNQHK=values)


def _on(bank: Bank, lm: FrozenLM) -> Bank:
    return replace(bank, prefix_length_T=bank.prefix_length_T.to(lm.device), start_T=bank.start_T.to(lm.device))
