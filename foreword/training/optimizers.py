"""Make the optimiser of a learner, and compute the learning rate of each step."""

import math
from collections.abc import Iterable

import torch

from foreword.core.shapes import Tensor
from foreword.training.contract import GradientConfig


class Adafactor(torch.optim.Optimizer):
    """Run Adafactor as prompt tuning does, without parameter scaling (Shazeer & Stern 2018; Lester et al. 2021).

    The second moment decays by `1 - t ** -decay_rate`. An update is scaled down to a root mean square of `threshold`.
    Nothing is factored, so each prompt of a stack moves as it would alone.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.3,
        weight_decay: float = 1e-5,
        decay_rate: float = 0.8,
        threshold: float = 1.0,
        eps: float = 1e-30,
    ):
        super().__init__(
            params,
            {"lr": lr, "weight_decay": weight_decay, "decay_rate": decay_rate, "threshold": threshold, "eps": eps},
        )

    @torch.no_grad()
    def step(self, closure=None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if closure is not None:
            raise NotImplementedError("Adafactor takes no closure.")
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["step"] = torch.zeros(())
                    state["square"] = torch.zeros_like(param)
                state["step"] += 1
                beta = 1.0 - float(state["step"]) ** -group["decay_rate"]
                state["square"].mul_(beta).add_(param.grad.square() + group["eps"], alpha=1.0 - beta)
                update = param.grad * state["square"].rsqrt()
                rms = update.norm() / math.sqrt(update.numel())
                update /= (rms / group["threshold"]).clamp(min=1.0)
                if group["weight_decay"]:
                    param.mul_(1.0 - group["weight_decay"] * group["lr"])
                param.sub_(update, alpha=group["lr"])


def make_optimizer(leaves: list[Tensor], config: GradientConfig) -> torch.optim.Optimizer:
    """Return the optimiser of one learner over its leaves."""
    kinds = {"adamw": torch.optim.AdamW, "adafactor": Adafactor, "sgd": torch.optim.SGD}
    return kinds[config.optimizer](leaves, lr=config.learning_rate, weight_decay=config.weight_decay)


def learning_rate(config: GradientConfig, step: int) -> float:
    """Return the learning rate of step `step` (from 0): linear warm-up, then constant, linear to 0 or cosine to 0."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    left = 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return config.learning_rate * left
