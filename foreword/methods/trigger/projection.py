"""A soft prompt that is learnt through its nearest tokens (PEZ, Wen et al. 2023, algorithm 1)."""

from collections.abc import Callable, Iterator, Sequence

import torch

from foreword.core.shapes import Float, Int, Tensor
from foreword.methods.trigger.block import Block
from foreword.methods.trigger.gradients import CHUNK, embeddings_of, slot_gradient
from foreword.methods.trigger.objective import Objective
from foreword.methods.trigger.slots import Prompt
from foreword.models.base import FrozenLM


@torch.no_grad()
def nearest(lm: FrozenLM, soft_PD: Float[Tensor, "P D"], allowed_A: Int[Tensor, "A"]) -> Prompt:
    """The allowed token with the highest cosine to each position; the first of equals."""
    soft_PD = torch.nn.functional.normalize(soft_PD.to(torch.promote_types(lm.dtype, torch.float32)), dim=1)
    step = max(1, CHUNK // lm.dims.width)
    parts = []
    for part in allowed_A.split(step):
        rows_AD = lm.embed(part[None].to(lm.device))[0].to(soft_PD)
        parts.append(torch.nn.functional.normalize(rows_AD, dim=1) @ soft_PD.T)
    best_P = torch.cat(parts).argmax(0).cpu()
    return tuple(int(i) for i in allowed_A[best_P])


def projected(
    lm: FrozenLM,
    blocks: Callable[[int], Sequence[Block]],
    soft_PD: Float[Tensor, "P D"],
    allowed_A: Int[Tensor, "A"],
    steps: int,
    learning_rate: float,
    objective: Objective,
) -> Iterator[tuple[Prompt, float]]:
    """The tokens nearest to the soft copy at each step and their loss on that step's rows.

    The gradient is taken at the tokens' own embeddings and applied to the soft copy, by AdamW without decay.
    """
    soft_PD = soft_PD.detach().float().clone().requires_grad_()
    optimizer = torch.optim.AdamW([soft_PD], lr=learning_rate, weight_decay=0.0)
    for step in range(steps):
        prompt = nearest(lm, soft_PD.detach(), allowed_A)
        loss, grad_PD = slot_gradient(lm, blocks(step), embeddings_of(lm, prompt), objective)
        yield prompt, loss
        soft_PD.grad = grad_PD.to(soft_PD)
        optimizer.step()
    yield nearest(lm, soft_PD.detach(), allowed_A), float("nan")
