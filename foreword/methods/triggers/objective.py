"""Define what a search minimises: a loss for each row, never negative, so a sum over some rows bounds the whole."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch.nn.functional import cross_entropy

from foreword.core.shapes import Float, Int, Tensor
from foreword.models.encoding.batch import Encoded
from foreword.models.encoding.label_layout import LabelPlan

Objective = Literal["class", "likelihood", "margin"]
MARGIN = 1.0


def row_losses(score_BC: Float[Tensor, "B C"], label_B: Int[Tensor, "B"], objective: Objective) -> Float[Tensor, "B"]:
    """Return the loss of each row.

    `likelihood`: -log of the label words' share of the vocabulary (Shin et al. 2020, eq. 1 and 2); `class`: -log of
    their share among the labels' words; `margin`: max(0, 1 - (right - best other)), in nats.
    """
    if objective == "likelihood":
        # a mean over several masks is no probability, and two such words of one label may pass 1
        return -score_BC.gather(1, label_B[:, None])[:, 0].clamp(max=0)
    if objective == "class":
        return cross_entropy(score_BC, label_B, reduction="none")
    right_B = score_BC.gather(1, label_B[:, None])[:, 0]
    others_BC = score_BC.scatter(1, label_B[:, None], -torch.inf)
    return (MARGIN - right_B + others_BC.max(1).values).clamp(min=0)


def readied(encoded: Sequence[Encoded], objective: Objective) -> list[Encoded]:
    """Return the rows with label words scored as the objective needs: over the vocabulary for likelihood."""
    if objective != "likelihood":
        return list(encoded)
    plans: dict[int, LabelPlan] = {}
    for e in encoded:
        if e.plan is not None and id(e.plan) not in plans:
            plans[id(e.plan)] = replace(e.plan, normalised=True)
    return [replace(e, plan=None if e.plan is None else plans[id(e.plan)]) for e in encoded]
