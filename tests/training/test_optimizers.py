"""python -m pytest tests/training/test_optimizers.py"""

import math

import pytest
import torch
from transformers.optimization import Adafactor as TheirAdafactor

from foreword.training.contract import GradientConfig
from foreword.training.optimizers import Adafactor, learning_rate


def test_adafactor_equals_transformers_on_a_flat_leaf():
    """transformers factors matrices but not vectors, so a flattened leaf there is our unfactored matrix."""
    generator = torch.Generator().manual_seed(3)
    ours = torch.randn(6, 8, generator=generator, dtype=torch.float64).requires_grad_()
    theirs = ours.detach().clone().flatten().requires_grad_()
    mine = Adafactor([ours], lr=0.3, weight_decay=1e-2)
    reference = TheirAdafactor(
        [theirs], lr=0.3, weight_decay=1e-2, eps=(1e-30, 0.0), clip_threshold=1.0, decay_rate=-0.8,
        relative_step=False, scale_parameter=False, warmup_init=False,
    )  # fmt: skip
    for step in range(30):
        gradient = torch.randn(6, 8, generator=generator, dtype=torch.float64) * (step + 1)
        ours.grad, theirs.grad = gradient.clone(), gradient.flatten().clone()
        mine.step()
        reference.step()
    assert torch.allclose(ours.flatten(), theirs, rtol=1e-9)
    other = Adafactor([torch.zeros(6, 8, requires_grad=True)], lr=0.1)
    assert other.param_groups[0]["lr"] != mine.param_groups[0]["lr"]


def test_the_first_step_has_a_root_mean_square_of_the_learning_rate():
    leaf = torch.zeros(4, 5, requires_grad=True)
    leaf.grad = torch.randn(4, 5) * 1e-3
    Adafactor([leaf], lr=0.3, weight_decay=0.0).step()
    assert leaf.detach().abs().allclose(torch.full((4, 5), 0.3), rtol=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_warm_up_and_end_where_they_should(schedule):
    config = GradientConfig(learning_rate=2.0, steps=100, warmup=10, schedule=schedule)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    middle = {"constant": 2.0, "linear": 1.0, "cosine": 2.0 * 0.5 * (1 + math.cos(math.pi / 2))}[schedule]
    assert rates[55] == pytest.approx(middle)
    assert (rates[99] < 0.05) == (schedule != "constant")
