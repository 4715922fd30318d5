"""Check before the first step that a model can be differentiated twice, and finely enough."""

import sys

import torch

from foreword.errors import ModelError
from foreword.methods.meta.inner_loop import Leaves, product
from foreword.methods.meta.task_losses import EpisodeRow, PromptLoss, Shape
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Encoded


def twice_differentiable(lm: FrozenLM, shape: Shape, start: Leaves, longest: Encoded) -> FrozenLM:
    """Return the model to read through if a gradient is differentiated: this one, or a view with another attention.

    `start` are one task's leaves and `longest` a row as long as any, since the kernel of the attention depends on the
    length. A change of attention is reported in one line on stderr.

    Raises: ModelError if the model cannot be differentiated twice at all.
    """
    fault = _fault(lm, shape, start, longest)
    if fault is None:
        return lm
    view = lm.second_order()
    if (still := _fault(view, shape, start, longest)) is not None:
        raise ModelError(
            f"{lm.name} cannot be differentiated twice ({' '.join(still.split())[:160]}); use -o algorithm=fomaml, or "
            "-o second_order=finite."
        )
    print(
        f"{lm.name}: its fused attention cannot be differentiated twice; plain attention is used where it must be",
        file=sys.stderr,
    )
    return view


def tell_if_coarse(lm: FrozenLM) -> None:
    """Print one line on stderr if the model computes in half precision.

    Products with the Hessian lose their direction there.
    """
    if lm.dtype in (torch.float16, torch.bfloat16):
        print(
            f"{lm.name} computes in {str(lm.dtype).removeprefix('torch.')}, too coarse for second derivatives, which "
            "may point anywhere; load it with --dtype float32, or use -o algorithm=fomaml",
            file=sys.stderr,
        )


def _fault(lm: FrozenLM, shape: Shape, start: Leaves, row: Encoded) -> str | None:
    """Return torch's error about a Hessian-vector product over this row; None if there is none."""
    loss = PromptLoss(lm, lm, shape, [EpisodeRow(0, row, 0, 1.0)], 1, len(row))
    leaves = {name: leaf[None] for name, leaf in start.items()}
    ones = {name: torch.ones_like(leaf) for name, leaf in leaves.items()}
    try:
        product(loss, leaves, ones)
    except RuntimeError as error:
        if "derivative" in str(error) or "not implemented" in str(error) or "double backward" in str(error):
            return str(error)
        raise
    return None
