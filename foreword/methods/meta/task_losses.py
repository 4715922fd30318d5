"""Compute losses of many tasks' prompts over one frozen model. Rows share batches, each with its task's prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from foreword.core.prompts import Bank, PrefixPrompt, SoftPrompt
from foreword.core.shapes import Float, Int, Tensor
from foreword.inference.batched import batches_of, map_rows
from foreword.methods.meta.inner_loop import Leaves, Loss
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Encoded
from foreword.models.score import score
from foreword.models.shared_prefix import PrefixCache, bank_after, can_split

TEXT_BYTES = 2**29  # keys and values of texts that are kept at once


@final
class RowKey:
    """Tell rows apart by their array of ids, which rows with other labels may share."""

    def __init__(self, encoded: Encoded):
        self._ids_S: Int[np.ndarray, "S"] = encoded.ids_S  # the array lives as long as the key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowKey) and self._ids_S is other._ids_S

    def __hash__(self) -> int:
        return id(self._ids_S)


Texts = PrefixCache[RowKey]


@final
@dataclass(frozen=True, eq=False)
class EpisodeRow:
    """Hold one encoded row of one task of a meta-batch, its label there, and its share of the task's mean."""

    task: int
    encoded: Encoded
    label: int
    share: float


@final
@dataclass(frozen=True)
class Shape:
    """Turn leaves into prompts: "embed" (T, P, D) is soft; "pair" (T, 2, N, P, H, K) a prefix, the text at `start`.

    Weights of the model, if they learn too, are leaves of their own names after "model.", with T = 1.
    """

    form: str
    start: int = 0

    def bank(self, leaves: Mapping[str, Tensor]) -> Bank:
        """Return the prompts of all tasks; differentiable."""
        if self.form == "soft":
            embed_TPD = leaves["embed"]
            none_T = torch.zeros(len(embed_TPD), dtype=torch.long, device=embed_TPD.device)
            return Bank(embed_TPD, None, None, none_T, none_T)
        pair_T2NPHK = leaves["pair"]
        length_T = torch.full((len(pair_T2NPHK),), pair_T2NPHK.shape[3], device=pair_T2NPHK.device)
        start_T = torch.full_like(length_T, self.start)
        return Bank(None, pair_T2NPHK[:, 0], pair_T2NPHK[:, 1], length_T, start_T)

    def prompt(self, leaves: Mapping[str, Tensor]) -> SoftPrompt | PrefixPrompt:
        """Return the prompt of one task's leaves (without their first axis)."""
        if self.form == "soft":
            return SoftPrompt(leaves["embed"])
        return PrefixPrompt({"self": (leaves["pair"][0], leaves["pair"][1])}, self.start)


MODEL = "model."


def through(lm: FrozenLM, leaves: Mapping[str, Tensor]) -> FrozenLM:
    """Return the model with the weights among the leaves of one task."""
    weights = {n.removeprefix(MODEL): leaf[0].to(lm.dtype) for n, leaf in leaves.items() if n.startswith(MODEL)}
    return lm.with_weights(weights) if weights else lm


@final
class PromptLoss(Loss):
    """Compute the mean cross-entropy of each task's rows under its own prompt.

    `twice` is the model to read through if the result is differentiated twice. `texts` keeps what stands before the
    prompt in each row, if `text_first`.
    """

    def __init__(
        self,
        lm: FrozenLM,
        twice: FrozenLM,
        shape: Shape,
        rows: Sequence[EpisodeRow],
        tasks: int,
        budget: int,
        texts: Texts | None = None,
    ):
        self.tasks = tasks
        self._models, self._shape, self._rows = (lm, twice), shape, rows
        self._read = encoded = [r.encoded for r in rows]
        self.prefixes: list[PrefixPrompt] = []  # of each row's text, if it is read apart
        if texts is not None and text_first(lm, encoded):
            halves = [e.split(first_slot(e)) for e in encoded]
            keys = [RowKey(e) for e in encoded]
            kept = texts.prefixes({key: text for key, (text, _) in zip(keys, halves, strict=True)}, budget)
            self.prefixes = [kept[key] for key in keys]
            self._read = [rest for _, rest in halves]
        self._batches = batches_of(self._read, budget)

    @property
    def parts(self) -> int:
        return len(self._batches)

    @property
    def tokens(self) -> int:
        """Return the number of columns that one reading of all rows sends through the model, without padding."""
        return sum(e.cost for e in self._read)

    def part(self, number: int, leaves: Mapping[str, Tensor], twice: bool) -> Float[Tensor, "T"]:
        chosen = self._batches[number]
        rows = [self._rows[i] for i in chosen]
        lm = through(self._models[twice], leaves)
        task_B = torch.tensor([r.task for r in rows], device=lm.device)
        label_B = torch.tensor([r.label for r in rows], device=lm.device)
        bank, which_B = self._shape.bank(leaves), task_B
        if self.prefixes:
            assert bank.soft_TPD is not None, "a prefix stands before the text"
            bank = bank_after(lm, [self.prefixes[i] for i in chosen], bank.soft_TPD.index_select(0, task_B))
            which_B = torch.arange(len(rows), device=lm.device)
        score_BC = score(lm, [self._read[i] for i in chosen], bank, which_B)
        share_B = torch.tensor([r.share for r in rows], device=lm.device, dtype=score_BC.dtype)
        loss_B = cross_entropy(score_BC, label_B, reduction="none") * share_B
        return loss_B.new_zeros(self.tasks).index_add(0, task_B, loss_B)


def scores_of(
    lm: FrozenLM, shape: Shape, leaves: Leaves, rows: Sequence[EpisodeRow], budget: int
) -> list[Float[Tensor, "C"]]:
    """Return the scores of every row under its task's prompt, in order; without gradients."""
    encoded = [row.encoded for row in rows]
    with torch.no_grad():
        bank, model = shape.bank(leaves), through(lm, leaves)

        def read(batch: list[int]) -> Tensor:
            task_B = torch.tensor([rows[i].task for i in batch], device=lm.device)
            return score(model, [encoded[i] for i in batch], bank, task_B).cpu()

        scores = map_rows(encoded, budget, read)
    return [score_C[: e.plan.labels if e.plan else 0] for e, score_C in zip(encoded, scores, strict=True)]


def first_slot(encoded: Encoded) -> int:
    """Return the column of the first slot; the row's length if it has none."""
    at = (encoded.slot_S >= 0).nonzero()[0]
    return int(at[0]) if len(at) else len(encoded.slot_S)


def text_first(lm: FrozenLM, rows: Sequence[Encoded]) -> bool:
    """Return whether in every row the prompt comes after a text, and the model can have this text as a prefix.

    A causal model reads the text without seeing the prompt, so its keys and values are the same in every inner step,
    product and task.
    """
    return bool(rows) and all(e.shared <= first_slot(e) and can_split(lm, e, first_slot(e)) for e in rows)
