"""Run one training step for many learners at once. Their rows share batches; each learner gets its own gradient."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from foreword.core.prompts import PrefixPrompt
from foreword.core.shapes import Tensor
from foreword.core.values import Learnt
from foreword.inference.batched import batches_of, view
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded
from foreword.models.memory import fitting
from foreword.models.score import score
from foreword.models.shared_prefix import bank_after, compile_prefixes, groups_of
from foreword.training.contract import Learner


@dataclass(frozen=True, eq=False)
class TrainingExample:
    """Hold one encoded row of a learner's step, its label (None for text), and its share of the learner's mean."""

    owner: int
    encoded: Encoded
    label: int | None
    share: float


def step_gradients(
    lm: FrozenLM, learners: Sequence[Learner], examples: Sequence[TrainingExample], budget: int
) -> tuple[list[float], int]:
    """Leave the gradients in each learner's leaves; return its mean loss over its own rows, and the budget that fitted.

    The loss is the sum of the learners' means, so each gradient is what it would be alone. What a learner builds from
    its leaves, such as an MLP, runs forward and backward once, however many batches the step needs. If memory runs out,
    the budget of tokens in a batch is halved, with one line on stderr.

    Raises: ModelError if not even one row fits.
    """
    values = [learner.build(learner.leaves) for learner in learners]

    def step(tokens: int) -> tuple[list[float], list[dict[str, Tensor]]]:
        cut = [{k: t.detach().requires_grad_() for k, t in v.tensors().items()} for v in values]
        leaves = [v.with_tensors(c) for v, c in zip(values, cut, strict=True)]
        return _accumulate(lm, learners, leaves, examples, tokens), cut

    longest = max(e.encoded.cost for e in examples)
    most = min(budget, longest * len(examples))
    advice = "Use a smaller model, a lower max_length, --dtype bfloat16 or -o checkpointing=true"
    (losses, cut), fitted = fitting(step, most, min(longest, most), f"a single row of {longest} tokens. {advice}")
    outputs, gradients = [], []
    for value, leaf in zip(values, cut, strict=True):
        for name, tensor in value.tensors().items():
            grad = leaf[name].grad
            if grad is not None and tensor.requires_grad:
                outputs.append(tensor)
                gradients.append(grad)
    if outputs:
        torch.autograd.backward(outputs, gradients)
    return losses, budget if fitted == most else fitted


def _accumulate(
    lm: FrozenLM,
    learners: Sequence[Learner],
    values: Sequence[Learnt],
    examples: Sequence[TrainingExample],
    budget: int,
) -> list[float]:
    losses = [0.0] * len(learners)
    checkpointing = learners[0].config.checkpointing
    if checkpointing:
        lm = lm.checkpointing(True)
    rows: list[list[Encoded]] = [[] for _ in learners]
    for example in examples:
        rows[example.owner].append(example.encoded)
    for group in groups_of(lm, values, rows, budget, share=not checkpointing):
        group_values = {owner: values[owner] for owner in group.owners}
        group_examples = [e for e in examples if e.owner in group_values]
        prefixes: dict[int, PrefixPrompt] = {}
        if group.shared:
            _, bank = view(lm, [*group_values.values()])
            compiled = compile_prefixes(lm, [rows[owner][0].split()[0] for owner in group.owners], bank)
            prefixes = dict(zip(group.owners, compiled, strict=True))
            group_examples = [dataclasses.replace(e, encoded=e.encoded.split()[1]) for e in group_examples]
        # Every batch adds to the gradient of the prefixes' copies; one backward pass takes the sum on to the values.
        copies = {owner: _detached(prefix) for owner, prefix in prefixes.items()}
        for chosen in batches_of([e.encoded for e in group_examples], budget):
            _backward(lm, group_values, copies, [group_examples[i] for i in chosen], losses, learners[0].dropout)
        states = [t for prefix in prefixes.values() for t in prefix.sites["self"]]
        if states:
            torch.autograd.backward(states, [t.grad for prefix in copies.values() for t in prefix.sites["self"]])
    return losses


def _backward(
    lm: FrozenLM,
    values: Mapping[int, Learnt],
    prefixes: Mapping[int, PrefixPrompt],
    batch: Sequence[TrainingExample],
    losses: list[float],
    dropout: bool,
) -> None:
    """Run one forward and backward pass; only the prompts that the batch has are stacked."""
    present = sorted({e.owner for e in batch})
    read, bank = view(lm, [values[owner] for owner in present], dropout)
    if prefixes:
        bank = bank_after(lm, [prefixes[owner] for owner in present], bank.soft_TPD if bank else None)
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


def _detached(prefix: PrefixPrompt) -> PrefixPrompt:
    """Return a copy of the prefix as leaves, so that batches can add to its gradient."""
    keys, values = (t.detach().requires_grad_(t.requires_grad) for t in prefix.sites["self"])
    return PrefixPrompt({"self": (keys, values)}, prefix.start)
