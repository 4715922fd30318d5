"""One forward and backward pass for many learners at once: rows of all of them in mixed batches, gradients apart."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from foreword.core.learnt import Learnt, LowRank, Weights
from foreword.core.prompts import Bank, HardPrompt, PrefixPrompt, SoftPrompt, stack
from foreword.core.shapes import Tensor
from foreword.errors import ModelError
from foreword.methods.base import Learner
from foreword.models.base import FrozenLM
from foreword.models.encode import Encoded
from foreword.models.score import is_out_of_memory, score, score_all


@dataclass(frozen=True, eq=False)
class Example:
    """One encoded row of one learner's step, its label, and its share of that learner's mean."""

    owner: int
    encoded: Encoded
    label: int
    share: float


def tensors_of(value: Learnt) -> dict[str, Tensor]:
    """The tensors of a value that a gradient can reach, by a name of their own."""
    if isinstance(value, SoftPrompt):
        return {"embed": value.embed_PD}
    if isinstance(value, PrefixPrompt):
        return {f"{site}.{i}": t for site, pair in value.sites.items() for i, t in enumerate(pair)}
    if isinstance(value, Weights):
        return dict(value.tensors)
    return {}


def rebuilt(value: Learnt, tensors: Mapping[str, Tensor]) -> Learnt:
    """The value with its tensors replaced, by the names of `tensors_of`."""
    if isinstance(value, SoftPrompt):
        return SoftPrompt(tensors["embed"])
    if isinstance(value, PrefixPrompt):
        sites = {site: (tensors[f"{site}.0"], tensors[f"{site}.1"]) for site in value.sites}
        return dataclasses.replace(value, sites=sites)
    if isinstance(value, Weights):
        return Weights(dict(tensors))
    return value


def view(lm: FrozenLM, values: Sequence[Learnt], dropout: bool = False) -> tuple[FrozenLM, Bank | None]:
    """What the rows are read through: the frozen model and a bank of prompts, or the model with other weights."""
    first = values[0]
    if isinstance(first, HardPrompt | SoftPrompt | PrefixPrompt):
        prompts = [v for v in values if isinstance(v, HardPrompt | SoftPrompt | PrefixPrompt)]
        return lm, stack(prompts, lm.embed, lm.device)
    if len(values) != 1:
        raise ModelError("Weights cannot be mixed in one batch; pass one learner at a time.")
    if isinstance(first, LowRank):
        return lm.with_weights(first.merged(lm.named_weights()), dropout), None
    assert isinstance(first, Weights), "only prompts and weights are read through the model"
    return lm.with_weights(first.tensors, dropout), None


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


def step_gradients(
    lm: FrozenLM, learners: Sequence[Learner], examples: Sequence[Example], budget: int
) -> tuple[list[float], int]:
    """Each learner's mean loss over its own rows, gradients left in its leaves; and the token budget that fitted.

    The loss is the sum of the learners' means, so a learner's gradient is what it would be alone. What a learner builds
    from its leaves (an MLP, say) runs once, forward and backward, however many batches the step needs. When memory runs
    out the batch halves, with one line on stderr.

    Raises: ModelError where not even one row fits.
    """
    values = [learner.build(learner.leaves) for learner in learners]
    while True:
        cut = [{k: t.detach().requires_grad_() for k, t in tensors_of(v).items()} for v in values]
        try:
            losses = _accumulate(
                lm, learners, [rebuilt(v, c) for v, c in zip(values, cut, strict=True)], examples, budget
            )
            break
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            longest = max(e.encoded.cost for e in examples)
            if budget <= longest:
                raise ModelError(
                    f"Out of memory with a single row of {longest} tokens. Use a smaller model, a lower max_length, "
                    "--dtype bfloat16 or -o checkpointing=true."
                ) from error
            budget = max(longest, min(budget, longest * len(examples)) // 2)
            print(f"out of memory: going on with {budget} tokens a batch", file=sys.stderr)
    outputs, gradients = [], []
    for value, leaf in zip(values, cut, strict=True):
        for name, tensor in tensors_of(value).items():
            grad = leaf[name].grad
            if grad is not None and tensor.requires_grad:
                outputs.append(tensor)
                gradients.append(grad)
    if outputs:
        torch.autograd.backward(outputs, gradients)
    return losses, budget


def _accumulate(
    lm: FrozenLM, learners: Sequence[Learner], values: Sequence[Learnt], examples: Sequence[Example], budget: int
) -> list[float]:
    losses = [0.0] * len(learners)
    dropout = learners[0].dropout
    if learners[0].config.checkpointing:
        lm = lm.checkpointing(True)
    for chosen in batches_of([e.encoded for e in examples], budget):
        batch = [examples[i] for i in chosen]
        read, bank = view(lm, values, dropout)
        owner_B = torch.tensor([e.owner for e in batch], device=lm.device)
        label_B = torch.tensor([e.label for e in batch], device=lm.device)
        share_B = torch.tensor([e.share for e in batch], device=lm.device)
        score_BC = score(read, [e.encoded for e in batch], bank, owner_B)
        loss_B = cross_entropy(score_BC, label_B, reduction="none") * share_B.to(score_BC.dtype)
        loss_B.sum().backward()
        for example, part in zip(batch, loss_B.detach().tolist(), strict=True):
            losses[example.owner] += part
    return losses


@torch.no_grad()
def stacked_scores(
    lm: FrozenLM, values: Sequence[Learnt], rows: Sequence[Sequence[Encoded]], tokens_per_batch: int | None = None
) -> list[Tensor]:
    """Scores of each value's own rows, (rows, labels) each; prompts share batches, weights go one at a time."""
    if len(values) > 1 and not isinstance(values[0], HardPrompt | SoftPrompt | PrefixPrompt):
        return [stacked_scores(lm, [v], [r], tokens_per_batch)[0] for v, r in zip(values, rows, strict=True)]
    read, bank = view(lm, values)
    flat = [encoded for group in rows for encoded in group]
    task_B = torch.tensor([t for t, group in enumerate(rows) for _ in group], device=lm.device)
    scores = score_all(read, flat, bank, task_B, tokens_per_batch=tokens_per_batch)
    return list(scores.split([len(group) for group in rows]))
