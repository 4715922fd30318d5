"""One forward and backward pass for many learners at once: rows of all of them in mixed batches, gradients apart."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from foreword.core.prompts import PrefixPrompt
from foreword.core.values import Learnt
from foreword.errors import ModelError
from foreword.inference.batched import _groups, _joined, _led, batches_of, view
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded
from foreword.models.memory import is_out_of_memory
from foreword.models.score import score
from foreword.models.shared_prefix import compile_leads
from foreword.training.contract import Learner


@dataclass(frozen=True, eq=False)
class Example:
    """One encoded row of one learner's step, its label (None: a text is its answer), and its share of that learner's
    mean."""

    owner: int
    encoded: Encoded
    label: int | None
    share: float


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
        cut = [{k: t.detach().requires_grad_() for k, t in v.tensors().items()} for v in values]
        leaves = [v.with_tensors(c) for v, c in zip(values, cut, strict=True)]
        try:
            losses = _accumulate(lm, learners, leaves, examples, budget)
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
        for name, tensor in value.tensors().items():
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
    checkpointing = learners[0].config.checkpointing
    if checkpointing:
        lm = lm.checkpointing(True)
    rows: list[list[Encoded]] = [[] for _ in learners]
    for example in examples:
        rows[example.owner].append(example.encoded)
    for group in _groups(lm, values, rows, budget, leads=not checkpointing):
        read = {owner: values[owner] for owner in group.owners}
        own = [e for e in examples if e.owner in read]
        prefixes: dict[int, PrefixPrompt] = {}
        if group.led:
            prefixes = _lead_prefixes(lm, read, {owner: _led(rows[owner][0]) for owner in group.owners})
            own = [dataclasses.replace(e, encoded=_led(e.encoded).without_lead()) for e in own]
        cut = {owner: _detached(prefix) for owner, prefix in prefixes.items()}
        for chosen in batches_of([e.encoded for e in own], budget):
            _backward(lm, read, cut, [own[i] for i in chosen], losses, learners[0].dropout)
        made = [t for prefix in prefixes.values() for t in prefix.sites["self"]]
        if made:
            torch.autograd.backward(made, [t.grad for prefix in cut.values() for t in prefix.sites["self"]])
    return losses


def _backward(
    lm: FrozenLM,
    values: Mapping[int, Learnt],
    prefixes: Mapping[int, PrefixPrompt],
    batch: Sequence[Example],
    losses: list[float],
    dropout: bool,
) -> None:
    """One forward and backward pass; only the prompts that the batch has are stacked."""
    present = sorted({e.owner for e in batch})
    read, bank = view(lm, [values[owner] for owner in present], dropout)
    if prefixes:
        bank = _joined(lm, bank, [prefixes[owner] for owner in present])
    task_B = torch.tensor([present.index(e.owner) for e in batch], device=lm.device)
    label_B = torch.tensor([e.label or 0 for e in batch], device=lm.device)
    text_B = torch.tensor([e.label is None for e in batch], device=lm.device)
    share_B = torch.tensor([e.share for e in batch], device=lm.device)
    score_BC = score(read, [e.encoded for e in batch], bank, task_B)
    loss_B = torch.where(text_B, -score_BC[:, 0], cross_entropy(score_BC, label_B, reduction="none"))
    loss_B = loss_B * share_B.to(score_BC.dtype)
    loss_B.sum().backward()
    for example, part in zip(batch, loss_B.detach().tolist(), strict=True):
        losses[example.owner] += part


def _lead_prefixes(lm: FrozenLM, values: Mapping[int, Learnt], first: Mapping[int, Encoded]) -> dict[int, PrefixPrompt]:
    _, bank = view(lm, [*values.values()])
    return dict(zip(values, compile_leads(lm, [first[owner] for owner in values], bank), strict=True))


def _detached(prefix: PrefixPrompt) -> PrefixPrompt:
    """The same numbers as leaves of their own."""
    keys, values = (t.detach().requires_grad_(t.requires_grad) for t in prefix.sites["self"])
    return PrefixPrompt({"self": (keys, values)}, prefix.start)
