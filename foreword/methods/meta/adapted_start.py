"""Adapt a start: take an artefact's leaves and their step sizes, and run the inner loop on a task's support rows."""

from collections.abc import Sequence

import torch

from foreword.core.artefact import Artefact
from foreword.core.prompts import PrefixPrompt, SoftPrompt
from foreword.core.values import PromptPool
from foreword.errors import ConfigError
from foreword.methods.meta.inner_loop import Leaves, Rates, adapt
from foreword.methods.meta.meta_gradient import spread
from foreword.methods.meta.meta_step import Lens, PromptLens
from foreword.methods.meta.pool_lens import PoolLens
from foreword.methods.meta.task_losses import MODEL, EpisodeRow, Shape
from foreword.models.base import FrozenLM
from foreword.training.warm_start import shares_of


def leaves_of(lm: FrozenLM, start: Artefact, transductive: bool = False) -> tuple[Leaves, int, Lens]:
    """Return a start's leaves on the model's device, the columns that a prefix takes, and how rows are read with them.

    Raises: ConfigError for an artefact without a prompt that can be adapted.
    """
    value, prompt = start.value, start.value.as_prompt
    tensors = {name: tensor.float() for name, tensor in value.tensors().items() if name.startswith(MODEL)}
    shape = Shape("soft")
    lens: Lens | None = None
    if isinstance(prompt, SoftPrompt):
        tensors |= prompt.tensors()
    elif isinstance(prompt, PrefixPrompt):
        shape = Shape("prefix", prompt.start)
        tensors["pair"] = torch.stack(prompt.sites["self"])
    elif isinstance(value, PromptPool):
        tensors |= value.tensors()
        share, sharpness = start.config.get("prototypes", 0.5), start.config.get("sharpness", 10.0)
        lens = PoolLens(lm, lm, share, sharpness, transductive)
    else:
        raise ConfigError(
            f"An artefact of {start.method} has no prompt to adapt; give a start, or any soft prompt or prefix."
        )
    leaves = {name: leaf.to(lm.device) for name, leaf in tensors.items()}
    return leaves, shape.start, lens or PromptLens(lm, lm, shape)


def rates_for(start: Artefact, leaves: Leaves, rate: float) -> Rates:
    """Return the step size of every leaf: `rate`, times the shares of it that the start has learnt for each position.

    For weights of the model, `rate` is scaled by the start's `model_rate` over its learning rate.
    """
    said = start.recipe.get("adaptation", {})
    shares = shares_of(start, leaves)
    results = {}
    for name, leaf in leaves.items():
        base = leaf.new_full((1,) * leaf.ndim, rate)
        if name.startswith(MODEL):
            base = base * (start.config.get("model_rate", 0.0) / said.get("learning_rate", 1.0))
        results[name] = (base * shares[name] if name in shares else base)[None]
    return results


def adapt_start(
    lens: Lens, leaves: Leaves, support: Sequence[EpisodeRow], tasks: int, rates: Rates, steps: int, budget: int
) -> Leaves:
    """Return the start after the inner loop on the support rows of each task, stacked over tasks."""
    stacked = spread(leaves, tasks)
    return adapt(lens.loss(support, (), tasks, budget), stacked, rates, steps).last if steps else stacked
