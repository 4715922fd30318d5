"""Compute gradients of a pool's loss in all slots at once, and the first-order change that each token would make."""

from collections.abc import Sequence

import torch

from foreword.core.shapes import Float, Int, Tensor
from foreword.inference.batched import batches_of
from foreword.methods.triggers.objective import Objective, row_losses
from foreword.methods.triggers.prompt_slots import Prompt
from foreword.methods.triggers.row_block import Block
from foreword.models.base import FrozenLM

CHUNK = 2**24  # numbers of a (tokens, width) block of embeddings that exist at once


def slot_gradient(
    lm: FrozenLM, blocks: Sequence[Block], embed_PD: Float[Tensor, "P D"], objective: Objective,
    tokens: int | None = None,
) -> tuple[float, Float[Tensor, "P D"]]:  # fmt: skip
    """Return the mean loss of all rows and its gradient in the slots' embeddings. The model's weights get none.

    `tokens` bounds one pass (None: what suits the device); any split gives the same sum.
    """
    rows = sum(map(len, blocks))
    leaf = embed_PD.detach().clone().requires_grad_()
    total = 0.0
    for block in blocks:
        for chosen in batches_of(block.rows, tokens or lm.batch_tokens):
            score_BC = block.soft_scores(leaf, chosen)
            label_B = block.label_B[chosen].to(score_BC.device)
            loss = row_losses(score_BC, label_B, objective).sum() / rows
            loss.backward()
            total += float(loss.detach())
    assert leaf.grad is not None, "every row has slots"
    return total, leaf.grad


def embeddings_of(lm: FrozenLM, prompt: Prompt) -> Float[Tensor, "P D"]:
    """Return the embedding module's own output for a prompt."""
    return lm.embed(torch.tensor([prompt], device=lm.device))[0]


@torch.no_grad()
def first_order(
    lm: FrozenLM, grad_PD: Float[Tensor, "P D"], prompt: Prompt, allowed_A: Int[Tensor, "A"]
) -> Float[Tensor, "P A"]:
    """Return the change of the loss that each token in a slot should make, (e_w - e_now) . g.

    This is Ebrahimi et al. 2018, eq. 5, and Shin et al. 2020, eq. 3, with the constant left in. It is infinite for the
    token that is there.
    """
    grad_PD = grad_PD.to(torch.promote_types(grad_PD.dtype, torch.float32))
    now_P = (embeddings_of(lm, prompt).to(grad_PD) * grad_PD).sum(1)
    step = max(1, CHUNK // lm.dims.width)
    chunks = [lm.embed(part[None].to(lm.device))[0].to(grad_PD) @ grad_PD.T for part in allowed_A.split(step)]
    change_PA = torch.cat(chunks).T - now_P[:, None]
    same_PA = allowed_A[None].to(lm.device) == torch.tensor(prompt, device=lm.device)[:, None]
    return change_PA.masked_fill(same_PA, torch.inf).cpu()
