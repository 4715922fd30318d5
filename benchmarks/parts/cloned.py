"""MAML over prompts as libraries do it: a deep copy of the whole model a task, a loop over tasks, one graph."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from foreword.core.shapes import Tensor
from foreword.methods.meta.task_losses import EpisodeRow


def meta_gradient(
    model: Any,
    support: Sequence[EpisodeRow],
    query: Sequence[EpisodeRow],
    start_PD: Tensor,
    rate: float,
    steps: int,
    tasks: int,
) -> list[Tensor]:
    """Each task's gradient by the shared start, through transformers' own forward of padded rows."""
    found = []
    for task in range(tasks):
        own = copy.deepcopy(model)
        first = start_PD.detach().clone().requires_grad_()
        prompt = first
        mine = [[row for row in rows if row.task == task] for rows in (support, query)]
        for _ in range(steps):
            [slope] = torch.autograd.grad(_loss(own, mine[0], prompt), prompt, create_graph=True)
            prompt = prompt - rate * slope
        [gradient] = torch.autograd.grad(_loss(own, mine[1], prompt), first)
        found.append(gradient)
    return found


def _loss(model: Any, rows: Sequence[EpisodeRow], prompt_PD: Tensor) -> Tensor:
    """Mean cross-entropy over the pieces of the label words at the mask; all rows in one padded batch."""
    longest = max(len(r.encoded.ids_S) for r in rows)
    ids_BS = torch.zeros(len(rows), longest, dtype=torch.long)
    slot_BS = torch.full_like(ids_BS, -1)
    mask_BS = torch.zeros_like(ids_BS)
    for b, row in enumerate(rows):
        length = len(row.encoded.ids_S)
        ids_BS[b, :length] = torch.from_numpy(row.encoded.ids_S)
        slot_BS[b, :length] = torch.from_numpy(row.encoded.slot_S)
        mask_BS[b, :length] = 1
    at = slot_BS >= 0
    embed_BSD = model.get_input_embeddings()(ids_BS)
    embed_BSD = embed_BSD.index_put(at.nonzero(as_tuple=True), prompt_PD[slot_BS[at]])
    logits_BSV = model(inputs_embeds=embed_BSD, attention_mask=mask_BS).logits
    answer_B = torch.tensor([r.encoded.answer for r in rows])
    plan = rows[0].encoded.plan
    assert plan is not None and plan.single, "label words of one piece"
    ids_C = torch.tensor([word[0][0] for word in plan.words])
    score_BC = logits_BSV[torch.arange(len(rows)), answer_B][:, ids_C]
    return cross_entropy(score_BC, torch.tensor([r.label for r in rows]))
