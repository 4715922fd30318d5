"""Classes as the mean features of their support rows, and rows scored by how near they lie (Jiang et al. 2023)."""

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize, one_hot

from foreword.core.prompts import Bank
from foreword.core.shapes import Float, Int, Tensor
from foreword.inference.batched import batches_of
from foreword.methods.meta.task_losses import Fold
from foreword.models.base import FrozenLM
from foreword.models.encoding.batch import Encoded, collate, prepare

SHARPNESS = 10.0  # cosines times this are the scores


def features(
    lm: FrozenLM, rows: Sequence[Encoded], bank: Bank | None, task_B: Int[Tensor, "B"]
) -> Float[Tensor, "B D"]:
    """What the model has at each row's answer, after the output head's transform; differentiable in the bank."""
    inputs, prefix = prepare(lm, collate(rows), bank, task_B)
    hidden_BRD = lm.hidden_at(inputs, prefix)
    return hidden_BRD[:, 0].to(torch.promote_types(hidden_BRD.dtype, torch.float32))


def near(
    support_SD: Float[Tensor, "S D"],
    label_S: Int[Tensor, "S"],
    query_QD: Float[Tensor, "Q D"],
    classes: int,
    *,
    sharpness: float = SHARPNESS,
    transductive: bool = False,
) -> Float[Tensor, "Q C"]:
    """Scores of query rows: cosine to each class's mean of support features, times `sharpness`.

    `transductive` first takes the mean of the query rows themselves away from all, as the paper's code does: then a
    row's score depends on the others asked with it, and on how many there are of each class.
    """
    if transductive:
        middle_D = query_QD.mean(0)
        support_SD, query_QD = support_SD - middle_D, query_QD - middle_D
    member_SC = one_hot(label_S, classes).to(support_SD.dtype)
    mean_CD = (member_SC.T @ support_SD) / member_SC.sum(0)[:, None]
    return sharpness * normalize(query_QD, dim=-1) @ normalize(mean_CD, dim=-1).T


@torch.no_grad()
def frozen_features(lm: FrozenLM, rows: Sequence[Encoded], budget: int) -> Float[Tensor, "B D"]:
    """Features of rows without any prompt, in batches."""
    found: list[Tensor] = [torch.zeros(0)] * len(rows)
    for chosen in batches_of(rows, budget):
        part_BD = features(lm, [rows[i] for i in chosen], None, torch.zeros(len(chosen), dtype=torch.long))
        for i, feature_D in zip(chosen, part_BD, strict=True):
            found[i] = feature_D
    return torch.stack(found)


def by_task(rows: Sequence[Fold], tasks: int) -> list[list[int]]:
    """The places of each task's rows."""
    found: list[list[int]] = [[] for _ in range(tasks)]
    for place, row in enumerate(rows):
        found[row.task].append(place)
    return found


def prototype_scores(
    lm: FrozenLM, support: Sequence[Fold], query: Sequence[Fold], tasks: int, budget: int, transductive: bool = False
) -> list[Float[Tensor, "C"]]:
    """Scores of every query row, in order, by the frozen model's features alone: nothing is trained."""
    parts = [frozen_features(lm, [r.encoded for r in rows], budget) for rows in (support, query)]
    found: list[Tensor] = [torch.zeros(0)] * len(query)
    for mine, asked in zip(by_task(support, tasks), by_task(query, tasks), strict=True):
        label_S = torch.tensor([support[i].label for i in mine], device=lm.device)
        plan = query[asked[0]].encoded.plan
        assert plan is not None, "the rows of an episode have labels"
        score_QC = near(parts[0][mine], label_S, parts[1][asked], plan.labels, transductive=transductive)
        for place, score_C in zip(asked, score_QC.cpu(), strict=True):
            found[place] = score_C
    return found
