"""Losses of many tasks' prompts over one frozen model: rows in mixed batches, each read with its task's prompt."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch.nn.functional import cross_entropy, pad

from foreword.core.prompts import Bank, PrefixPrompt, SoftPrompt
from foreword.core.shapes import Float, Tensor
from foreword.inference.batched import batches_of
from foreword.methods.meta.inner_loop import Leaves, Loss
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Encoded, collate, prepare
from foreword.models.score import score

KEPT_NUMBERS = 2**27  # keys and values of texts that are kept at once (half a gigabyte in fp32)


@final
@dataclass(frozen=True, eq=False)
class Fold:
    """One encoded row of one task of a meta-batch, its label there, and its share of the task's mean."""

    task: int
    encoded: Encoded
    label: int
    share: float


@final
@dataclass(frozen=True)
class Shape:
    """How leaves become prompts: "embed" (T, P, D) is soft; "pair" (T, 2, N, P, H, K) a prefix, the text at `start`.

    Weights of the model, where they learn too, are leaves of their own names after "model.", with T = 1.
    """

    form: str
    start: int = 0

    def bank(self, leaves: Mapping[str, Tensor]) -> Bank:
        """The prompts of all tasks; differentiable."""
        if self.form == "soft":
            embed_TPD = leaves["embed"]
            none_T = torch.zeros(len(embed_TPD), dtype=torch.long, device=embed_TPD.device)
            return Bank(embed_TPD, None, None, none_T, none_T)
        pair_T2NPHK = leaves["pair"]
        length_T = torch.full((len(pair_T2NPHK),), pair_T2NPHK.shape[3], device=pair_T2NPHK.device)
        start_T = torch.full_like(length_T, self.start)
        return Bank(None, pair_T2NPHK[:, 0], pair_T2NPHK[:, 1], length_T, start_T)

    def prompt(self, leaves: Mapping[str, Tensor]) -> SoftPrompt | PrefixPrompt:
        """The prompt of one task's leaves (without their first axis)."""
        if self.form == "soft":
            return SoftPrompt(leaves["embed"])
        return PrefixPrompt({"self": (leaves["pair"][0], leaves["pair"][1])}, self.start)


MODEL = "model."


def through(lm: FrozenLM, leaves: Mapping[str, Tensor]) -> FrozenLM:
    """The model with the weights among the leaves of one task."""
    weights = {n.removeprefix(MODEL): leaf[0].to(lm.dtype) for n, leaf in leaves.items() if n.startswith(MODEL)}
    return lm.with_weights(weights) if weights else lm


@final
class PromptLoss(Loss):
    """The mean cross-entropy of each task's rows under its own prompt.

    `twice` is the model to read through where the result is differentiated twice. `texts` keeps what stands before the
    prompt in each row, where a causal model's prompt comes after the text.
    """

    def __init__(
        self,
        lm: FrozenLM,
        twice: FrozenLM,
        shape: Shape,
        rows: Sequence[Fold],
        tasks: int,
        budget: int,
        texts: "Texts | None" = None,
    ):
        self.tasks = tasks
        self._models, self._shape, self._rows = (lm, twice), shape, rows
        self._texts = texts if texts is not None and texts.fits([r.encoded for r in rows]) else None
        self._read = [r.encoded if self._texts is None else after_text(r.encoded) for r in rows]
        self._batches = batches_of(self._read, budget)
        if self._texts is not None:
            self._texts.prepare([r.encoded for r in rows], budget)

    @property
    def parts(self) -> int:
        return len(self._batches)

    @property
    def tokens(self) -> int:
        """Columns that one reading of all rows sends through the model, padding not counted."""
        return sum(e.cost for e in self._read)

    def part(self, number: int, leaves: Mapping[str, Tensor], twice: bool) -> Float[Tensor, "T"]:
        chosen = self._batches[number]
        rows = [self._rows[i] for i in chosen]
        lm = through(self._models[twice], leaves)
        task_B = torch.tensor([r.task for r in rows], device=lm.device)
        label_B = torch.tensor([r.label for r in rows], device=lm.device)
        bank, which_B = self._shape.bank(leaves), task_B
        if self._texts is not None:
            bank = self._texts.before(bank, [r.encoded for r in rows], task_B)
            which_B = torch.arange(len(rows), device=lm.device)
        score_BC = score(lm, [self._read[i] for i in chosen], bank, which_B)
        share_B = torch.tensor([r.share for r in rows], device=lm.device, dtype=score_BC.dtype)
        loss_B = cross_entropy(score_BC, label_B, reduction="none") * share_B
        return loss_B.new_zeros(self.tasks).index_add(0, task_B, loss_B)


def scores_of(
    lm: FrozenLM, shape: Shape, leaves: Leaves, rows: Sequence[Fold], budget: int
) -> list[Float[Tensor, "C"]]:
    """The scores of every row under its task's prompt, in order; without gradients."""
    found: list[Tensor] = [torch.zeros(0)] * len(rows)
    with torch.no_grad():
        bank, read = shape.bank(leaves), through(lm, leaves)
        for chosen in batches_of([r.encoded for r in rows], budget):
            task_B = torch.tensor([rows[i].task for i in chosen], device=lm.device)
            part_BC = score(read, [rows[i].encoded for i in chosen], bank, task_B).cpu()
            for i, score_C in zip(chosen, part_BC, strict=True):
                plan = rows[i].encoded.plan
                found[i] = score_C[: plan.labels if plan else 0]
    return found


def first_slot(encoded: Encoded) -> int:
    """The column of the first slot; the row's length where it has none."""
    at = (encoded.slot_S >= 0).nonzero()[0]
    return int(at[0]) if len(at) else len(encoded.slot_S)


def after_text(encoded: Encoded) -> Encoded:
    """The row from its first slot on, for a model that has what is before as keys and values."""
    k = first_slot(encoded)
    return Encoded(encoded.ids_S[k:], encoded.slot_S[k:], encoded.answer - k, encoded.plan, encoded.cut)


@final
class Texts:
    """Keys and values of what stands before the prompt, computed once a row and kept as long as there is room.

    A causal model reads the text without seeing the prompt that comes after it, so they are the same in every inner
    step, product and task. Rows are told apart by their array of ids.
    """

    def __init__(self, lm: FrozenLM, numbers: int = KEPT_NUMBERS):
        self._lm, self._room = lm, numbers
        self._kept: OrderedDict[int, tuple[Encoded, Tensor, Tensor]] = OrderedDict()
        self._size = 0
        self.computed = 0  # rows that went through the model

    def fits(self, rows: Sequence[Encoded]) -> bool:
        """Whether the prompt comes after a text in every row of a model that can have the text as keys and values."""
        able = self._lm.kind == "causal" and self._lm.takes_prefix
        after = able and bool(rows) and all(e.lead < first_slot(e) < len(e.slot_S) for e in rows)
        return after and all(self._lm.begins_alike(first_slot(e), len(e)) for e in rows)

    @torch.no_grad()
    def prepare(self, rows: Sequence[Encoded], budget: int) -> None:
        """Compute what is missing, in batches, and let go of what was used longest ago."""
        wanted = {id(e.ids_S): e for e in rows}
        for key in wanted.keys() & self._kept.keys():
            self._kept.move_to_end(key)
        missing = [e for key, e in wanted.items() if key not in self._kept]
        heads = [Encoded(e.ids_S[:k], e.slot_S[:k], k - 1, None) for e in missing for k in [first_slot(e)]]
        for chosen in batches_of(heads, budget):
            inputs, _ = prepare(self._lm, collate([heads[i] for i in chosen]), None, torch.zeros(len(chosen)).long())
            keys_NBSHK, values_NBSHK = self._lm.states(inputs)
            for b, i in enumerate(chosen):
                length = len(heads[i].ids_S)
                pair = keys_NBSHK[:, b, :length].clone(), values_NBSHK[:, b, :length].clone()
                self._kept[id(missing[i].ids_S)] = (missing[i], *pair)  # the row is kept, so that its id stays its own
                self._size += 2 * pair[0].numel()
                self.computed += 1
        while self._size > self._room and len(self._kept) > len(wanted):
            _, (_, keys, _) = self._kept.popitem(last=False)
            self._size -= 2 * keys.numel()

    def before(self, bank: Bank, rows: Sequence[Encoded], task_B: Tensor) -> Bank:
        """A bank of a prompt a row: its text's keys and values, and its task's soft prompt after them."""
        assert bank.soft_TPD is not None, "a prefix stands before the text"
        pairs = [self._kept[id(e.ids_S)][1:] for e in rows]
        length_B = torch.tensor([keys.shape[1] for keys, _ in pairs], device=task_B.device)
        longest = int(length_B.max())
        keys_BNQHK, values_BNQHK = (
            torch.stack([pad(pair[which], (0, 0, 0, 0, 0, longest - pair[which].shape[1])) for pair in pairs])
            for which in (0, 1)
        )
        soft_BPD = bank.soft_TPD.index_select(0, task_B)
        return replace(
            bank, soft_TPD=soft_BPD, keys_TNQHK=keys_BNQHK, values_TNQHK=values_BNQHK, prefix_length_T=length_B,
            start_T=length_B,
        )  # fmt: skip
