"""Learn a soft prompt through its nearest tokens (PEZ, Wen et al. 2023, algorithm 1)."""

from collections.abc import Sequence
from typing import Any, final

import torch

from foreword.core.shapes import Float, Int, Tensor
from foreword.methods.triggers.gradients import CHUNK, embeddings_of, slot_gradient
from foreword.methods.triggers.objective import Objective
from foreword.methods.triggers.prompt_slots import Prompt
from foreword.methods.triggers.row_block import Block
from foreword.models.base import FrozenLM


@torch.no_grad()
def nearest(lm: FrozenLM, soft_PD: Float[Tensor, "P D"], allowed_A: Int[Tensor, "A"]) -> Prompt:
    """Return the allowed token with the highest cosine to each position; the first of equals."""
    soft_PD = torch.nn.functional.normalize(soft_PD.to(torch.promote_types(lm.dtype, torch.float32)), dim=1)
    step = max(1, CHUNK // lm.dims.width)
    parts = []
    for part in allowed_A.split(step):
        rows_AD = lm.embed(part[None].to(lm.device))[0].to(soft_PD)
        parts.append(torch.nn.functional.normalize(rows_AD, dim=1) @ soft_PD.T)
    best_P = torch.cat(parts).argmax(0).cpu()
    return tuple(int(i) for i in allowed_A[best_P])


@final
class Descent:
    """Move a soft copy of a prompt.

    The gradient is taken at the nearest tokens' own embeddings and applied to the soft copy, by AdamW without decay.
    """

    def __init__(self, soft_PD: Float[Tensor, "P D"], learning_rate: float):
        self.soft_PD = soft_PD.detach().float().clone().requires_grad_()
        self.step = 0
        self._optimizer = torch.optim.AdamW([self.soft_PD], lr=learning_rate, weight_decay=0.0)

    def advance(
        self, lm: FrozenLM, blocks: Sequence[Block], allowed_A: Int[Tensor, "A"], objective: Objective
    ) -> tuple[Prompt, float]:
        """Take one step; return the tokens nearest to the soft copy before it, and their loss on these rows."""
        prompt = nearest(lm, self.soft_PD.detach(), allowed_A)
        loss, grad_PD = slot_gradient(lm, blocks, embeddings_of(lm, prompt), objective)
        self.soft_PD.grad = grad_PD.to(self.soft_PD)
        self._optimizer.step()
        self.step += 1
        return prompt, loss

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as numbers that JSON keeps exactly."""
        moments = self._optimizer.state_dict()["state"].get(0, {})
        kept = {name: moments[name].tolist() for name in ("step", "exp_avg", "exp_avg_sq") if name in moments}
        return {"step": self.step, "soft": self.soft_PD.tolist(), "moments": kept}

    def restore(self, kept: dict[str, Any]) -> None:
        with torch.no_grad():
            self.soft_PD.copy_(torch.tensor(kept["soft"]))
        self.step = kept["step"]
        state = self._optimizer.state_dict()
        state["state"] = {0: {k: torch.tensor(v) for k, v in kept["moments"].items()}} if kept["moments"] else {}
        self._optimizer.load_state_dict(state)
