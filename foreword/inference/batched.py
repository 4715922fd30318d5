"""Score rows of many learners in shared batches."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

from foreword.core.prompts import Bank, stack
from foreword.core.shapes import Tensor
from foreword.core.values import Learnt
from foreword.errors import ModelError
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded
from foreword.models.score import score_all
from foreword.models.shared_prefix import bank_after, compile_prefixes, groups_of

Result = TypeVar("Result")


def view(lm: FrozenLM, values: Sequence[Learnt], dropout: bool = False) -> tuple[FrozenLM, Bank | None]:
    """Return what reads the rows: the frozen model and a bank of prompts, or the model with other weights.

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
    """Return row numbers in batches of similar length, padded to at most the budget; one row alone may exceed it."""
    batches: list[list[int]] = []
    for index in sorted(range(len(encoded)), key=lambda i: -encoded[i].cost):
        last = batches[-1] if batches else None
        if last is None or (len(last) + 1) * encoded[last[0]].cost > tokens_per_batch:
            batches.append([index])
        else:
            last.append(index)
    return batches


def map_rows(
    encoded: Sequence[Encoded], tokens_per_batch: int, read: Callable[[list[int]], Iterable[Result]]
) -> list[Result]:
    """Return what `read` returns for each row, in the order of the rows; it is called with the numbers of a batch."""
    results: dict[int, Result] = {}
    for batch in batches_of(encoded, tokens_per_batch):
        results.update(zip(batch, read(batch), strict=True))
    return [results[number] for number in range(len(encoded))]


@torch.no_grad()
def stacked_scores(
    lm: FrozenLM, values: Sequence[Learnt], rows: Sequence[Sequence[Encoded]], tokens_per_batch: int | None = None
) -> list[Tensor]:
    """Return the scores of each value's rows (rows, labels). Prompts share batches; weights go one at a time.

    The columns that all rows of a prompt begin with are read once.
    """
    if len(values) > 1 and values[0].changes_weights:
        return [stacked_scores(lm, [v], [r], tokens_per_batch)[0] for v, r in zip(values, rows, strict=True)]
    budget = tokens_per_batch or lm.batch_tokens
    scores: list[Tensor] = [torch.zeros(0, 0)] * len(values)
    for group in groups_of(lm, values, rows, budget):
        group_rows = [list(rows[o]) for o in group.owners]
        read, bank = view(lm, [values[o] for o in group.owners])
        if group.shared:
            prefixes = compile_prefixes(lm, [r[0].split()[0] for r in group_rows], bank)
            bank = bank_after(lm, prefixes, bank.soft_TPD if bank else None)
            group_rows = [[e.split()[1] for e in r] for r in group_rows]
        task_B = torch.tensor([t for t, r in enumerate(group_rows) for _ in r], device=lm.device)
        score_BC = score_all(read, [e for r in group_rows for e in r], bank, task_B, tokens_per_batch=budget)
        for owner, score_NC in zip(group.owners, score_BC.split([len(r) for r in group_rows]), strict=True):
            scores[owner] = score_NC
    return scores
