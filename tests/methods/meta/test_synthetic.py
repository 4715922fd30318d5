"""A family of tasks with a known best start: python -m pytest tests/methods/meta/test_synthetic.py

Over a frozen random model, a task's labels are the scores that a prompt of its own gives: that prompt is a shared
centre and a step in a shared subspace of few dimensions. One step from the centre is what a start is measured by.
"""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from foreword.methods.meta.inner_loop import Loss, adapt, gradient
from foreword.methods.meta.meta_gradient import mean, meta_gradient, spread
from foreword.models.load import load
from foreword.models.score import score
from tests.methods.meta.problems import folded

RATE, LENGTH, DIMENSIONS, SPREAD = 1.0, 3, 2, 2.0


class Taught(Loss):
    """Mean squared distance of a task's scores from those that its teacher's prompt gives on the same rows."""

    def __init__(self, lm, shape, rows, teachers: Tensor):
        self.tasks, self._lm, self._shape, self._rows = len(teachers), lm, shape, rows
        with torch.no_grad():
            self._wanted = self._scores({"embed": teachers})

    def _scores(self, leaves: Mapping[str, Tensor]) -> Tensor:
        task_B = torch.tensor([r.task for r in self._rows])
        return score(self._lm, [r.encoded for r in self._rows], self._shape.bank(leaves), task_B)

    @property
    def parts(self) -> int:
        return 1

    def part(self, number: int, leaves: Mapping[str, Tensor], twice: bool) -> Tensor:
        apart_B = (self._scores(leaves) - self._wanted).square().mean(1)
        task_B = torch.tensor([r.task for r in self._rows])
        share_B = torch.tensor([r.share for r in self._rows], dtype=apart_B.dtype)
        return apart_B.new_zeros(self.tasks).index_add(0, task_B, share_B * apart_B)


@pytest.mark.slow
def test_a_learnt_start_is_as_good_as_the_centre_and_a_random_one_is_not():
    from foreword.methods.meta.task_losses import Shape

    lm = load("foreword-tiny")
    tasks, shape = 4, Shape("soft")
    _, folds, _, _ = folded("masked", tasks, 4, dtype=torch.float32, budget=10_000)
    support_rows, query_rows = folds(0), folds(16)
    draw = torch.Generator().manual_seed(3)
    centre = torch.randn(LENGTH, lm.dims.width, generator=draw)
    basis = torch.linalg.qr(torch.randn(LENGTH * lm.dims.width, DIMENSIONS, generator=draw))[0].T
    rates = {"embed": torch.full((1, 1, 1), RATE)}

    def losses(seed: int) -> tuple[Taught, Taught]:
        away = SPREAD * torch.randn(tasks, DIMENSIONS, generator=torch.Generator().manual_seed(seed))
        teachers = centre + (away @ basis).view(tasks, LENGTH, -1)
        return Taught(lm, shape, support_rows, teachers), Taught(lm, shape, query_rows, teachers)

    def after_one_step(start: Tensor) -> float:
        total = 0.0
        for seed in range(1000, 1006):
            support, query = losses(seed)
            end = adapt(support, spread({"embed": start}, tasks), rates, 1).last
            total += float(gradient(query, end)[0].mean()) / 6
        return total

    random_start = torch.randn(LENGTH, lm.dims.width, generator=draw)
    leaf = random_start.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=0.1)
    steps = 300
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for seed in range(steps):
        support, query = losses(seed)
        found = meta_gradient(support, query, spread({"embed": leaf}, tasks), rates, [0.0, 1.0])
        leaf.grad = mean(found.start)["embed"]
        optimizer.step()
        schedule.step()
    oracle, learnt, chance = (after_one_step(start) for start in (centre, leaf.detach(), random_start))
    assert learnt <= 1.05 * oracle, (learnt, oracle, chance)
    assert chance >= 5 * oracle, (learnt, oracle, chance)
