"""Score rows of many learners in shared batches."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foreword.core.prompts import Bank, PrefixPrompt, stack
from foreword.core.shapes import Tensor
from foreword.core.values import Learnt
from foreword.errors import ModelError
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded
from foreword.models.score import score_all
from foreword.models.shared_prefix import compile_leads


@dataclass(frozen=True)
class Group:
    """Learners whose rows are read together. Where it is `led`, what stands before the first field of their rows, which
    a causal model reads the same in every row, is read once for each learner, as a prefix.
    """

    owners: tuple[int, ...]
    led: bool


def view(lm: FrozenLM, values: Sequence[Learnt], dropout: bool = False) -> tuple[FrozenLM, Bank | None]:
    """Return what the rows are read through: the frozen model and a bank of prompts, or the model with other weights.

    Raises: ModelError for several values if the first changes weights.
    """
    first = values[0]
    prompts = [prompt for value in values if (prompt := value.as_prompt) is not None]
    bank = stack(prompts, lm.embed, lm.device) if prompts else None
    if not first.changes_weights:
        assert len(prompts) == len(values), "only prompts and weights are read through the model"
        return lm, bank
    if len(values) != 1:
        raise ModelError("Weights cannot be mixed in one batch; pass one learner at a time.")
    lm.require_weights()
    return lm.with_weights(first.merged(lm.named_weights()), dropout), bank


def batches_of(encoded: Sequence[Encoded], tokens_per_batch: int) -> list[list[int]]:
    """Row numbers in batches of similar length whose padded size stays within the budget (one row may exceed it)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(encoded)), key=lambda i: -encoded[i].cost):
        last = batches[-1] if batches else None
        if last is None or (len(last) + 1) * encoded[last[0]].cost > tokens_per_batch:
            batches.append([index])
        else:
            last.append(index)
    return batches


def _groups(
    lm: FrozenLM, values: Sequence[Learnt], rows: Sequence[Sequence[Encoded]], budget: int, leads: bool = True
) -> list[Group]:
    """All that have no lead to share; and those that have, as many at once as the budget has room for their leads."""
    able = leads and lm.kind == "causal" and lm.takes_prefix
    led = [o for o, (v, r) in enumerate(zip(values, rows, strict=True)) if able and _shares_lead(lm, v, r)]
    rest = tuple(o for o in range(len(values)) if o not in {*led} and rows[o])
    groups = [Group(rest, False)] if rest else []
    size = max(1, budget // max((rows[o][0].shared for o in led), default=1))
    return groups + [Group(tuple(led[i : i + size]), True) for i in range(0, len(led), size)]


def _shares_lead(lm: FrozenLM, value: Learnt, rows: Sequence[Encoded]) -> bool:
    """Whether several rows begin with the same columns, read alike in all of them, and go on after them."""
    if isinstance(value.as_prompt, PrefixPrompt | None) or value.changes_weights or len(rows) < 2:
        return False
    shared = rows[0].shared
    same = shared > 0 and all(e.shared == shared < len(e.ids_S) for e in rows)
    return same and lm.begins_alike(shared, max(map(len, rows)))


def _led(row: Encoded) -> Encoded:
    """The row, led by all that it shares with the others."""
    return dataclasses.replace(row, lead=row.shared)


def _joined(lm: FrozenLM, bank: Bank | None, prefixes: Sequence[PrefixPrompt]) -> Bank:
    """A bank of prefixes, with the slots that stand after them still filled from the one given."""
    joined = stack(prefixes, lm.embed, lm.device)
    return joined if bank is None else dataclasses.replace(joined, soft_TPD=bank.soft_TPD)


@torch.no_grad()
def stacked_scores(
    lm: FrozenLM, values: Sequence[Learnt], rows: Sequence[Sequence[Encoded]], tokens_per_batch: int | None = None
) -> list[Tensor]:
    """Scores of each value's own rows, (rows, labels) each; prompts share batches, weights go one at a time."""
    if len(values) > 1 and values[0].changes_weights:
        return [stacked_scores(lm, [v], [r], tokens_per_batch)[0] for v, r in zip(values, rows, strict=True)]
    budget = tokens_per_batch or lm.batch_tokens
    scores: list[Tensor] = [torch.zeros(0, 0)] * len(values)
    for group in _groups(lm, values, rows, budget):
        own = [list(rows[o]) for o in group.owners]
        read, bank = view(lm, [values[o] for o in group.owners])
        if group.led:
            prefixes = compile_leads(lm, [_led(r[0]) for r in own], bank)
            bank = _joined(lm, bank, prefixes)
            own = [[_led(e).without_lead() for e in r] for r in own]
        task_B = torch.tensor([t for t, r in enumerate(own) for _ in r], device=lm.device)
        found = score_all(read, [e for r in own for e in r], bank, task_B, tokens_per_batch=budget)
        for owner, score_NC in zip(group.owners, found.split([len(r) for r in own]), strict=True):
            scores[owner] = score_NC
    return scores
