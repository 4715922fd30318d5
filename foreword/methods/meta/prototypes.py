"""Score rows by how near they lie to each class: the mean features of its support rows (Jiang et al. 2023)."""

from collections.abc import Sequence

import torch

from foreword.core.shapes import Float, Tensor
from foreword.inference.prompt_pool import frozen_features, near
from foreword.methods.meta.task_losses import EpisodeRow
from foreword.models.base import FrozenLM


def by_task(rows: Sequence[EpisodeRow], tasks: int) -> list[list[int]]:
    """Return the places of each task's rows."""
    found: list[list[int]] = [[] for _ in range(tasks)]
    for place, row in enumerate(rows):
        found[row.task].append(place)
    return found


def prototype_scores(
    lm: FrozenLM,
    support: Sequence[EpisodeRow],
    query: Sequence[EpisodeRow],
    tasks: int,
    budget: int,
    transductive: bool = False,
) -> list[Float[Tensor, "C"]]:
    """Return the scores of every query row, in order, by the frozen model's features alone: nothing is trained."""
    parts = [frozen_features(lm, [r.encoded for r in rows], budget) for rows in (support, query)]
    results: list[Tensor] = [torch.zeros(0)] * len(query)
    for mine, asked in zip(by_task(support, tasks), by_task(query, tasks), strict=True):
        label_S = torch.tensor([support[i].label for i in mine], device=lm.device)
        plan = query[asked[0]].encoded.plan
        assert plan is not None, "the rows of an episode have labels"
        score_QC = near(parts[0][mine], label_S, parts[1][asked], plan.labels, transductive=transductive)
        for place, score_C in zip(asked, score_QC.cpu(), strict=True):
            results[place] = score_C
    return results
