"""Prefix tuning: keys and values of every layer, learnt by gradient (Li & Liang 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from foreword.core.prompts import PrefixPrompt
from foreword.core.shapes import Float, Tensor
from foreword.errors import ConfigError
from foreword.methods.base import GradientConfig, GradientMethod, Job, Learner, Start
from foreword.methods.init import started
from foreword.methods.prompt_tuning import OWN, label_ids, sampled_ids, text_ids
from foreword.models.base import FrozenLM
from foreword.models.encode import Encoder


@dataclass(frozen=True)
class PrefixTuningConfig(GradientConfig):
    """`init`: "labels" (activations of the label words, then of frequent pieces), "text" (`init_text`), "random" or the
    folder of an artefact with a prefix, of which the record keeps the hash.

    With `reparametrise` the prefix is an MLP of a small table (one hidden layer of `hidden` units, tanh), run once a
    step and folded away on save. It is added to the initial activations and starts at zero, so that no fit to them is
    needed. `learning_rate` is 0.02 for the prefix itself and 3e-4 for the network where not given. `start`: the text's
    first position comes "after" the prefix, or stays at "zero" (encoders only). A prefix stands in front: activations
    between source and answer, which the source would not see, are prompt-tuning's `place` alone.
    """

    length: int = 20
    init: Literal["labels", "text", "random"] | Start = "labels"
    init_text: str = ""
    reparametrise: bool = False
    hidden: int = 512
    start: Literal["after", "zero"] = "after"
    learning_rate: float = OWN

    def __post_init__(self) -> None:
        if self.learning_rate == OWN:
            object.__setattr__(self, "learning_rate", 3e-4 if self.reparametrise else 0.02)


class PrefixTuning(GradientMethod):
    name = "prefix-tuning"
    summary = "learnt keys and values of every layer"
    source = "Li & Liang 2021; Liu et al. 2022 for classification"
    Config = PrefixTuningConfig
    form = "prefix"
    mixed_batch = True
    freezes_lm = True
    takes_init = "prefix"
    answers = ("labels", "options", "text")

    def start(self, lm: FrozenLM, job: Job) -> Learner:
        config: PrefixTuningConfig = job.config
        lm.require_prefix()
        if config.start == "zero" and lm.kind != "masked":
            raise ConfigError(
                "prefix-tuning: start=zero is for encoders; a causal model's text comes after its prefix."
            )
        if job.format.template.slots:
            raise ConfigError(
                "prefix-tuning needs no {soft:...} slots in the template; remove them, or use prompt-tuning."
            )
        form = job.format
        generator = torch.Generator().manual_seed(job.seed)
        given = started(lm, job)
        if isinstance(given, PrefixPrompt):
            initial, start = given_prefix(lm, given, config), given.start
        else:
            initial = initial_prefix(lm, Encoder.build(lm, form), config, generator)
            start = initial.shape[2] if config.start == "after" else 0
        shape = initial.shape

        def prefix(pair: Float[Tensor, "2 N P H K"]) -> PrefixPrompt:
            return PrefixPrompt({"self": (pair[0], pair[1])}, start)

        if not config.reparametrise:
            return Learner({"pair": initial.requires_grad_()}, lambda leaves: prefix(leaves["pair"]), form, config)
        leaves = mlp_leaves(lm, shape, config.hidden, generator)

        def build(leaves: Mapping[str, Tensor]) -> PrefixPrompt:
            hidden = torch.tanh(leaves["table"] @ leaves["down.weight"].T + leaves["down.bias"])
            flat_PX = hidden @ leaves["up.weight"].T + leaves["up.bias"]
            two, layers, length, heads, size = shape
            pair = flat_PX.view(length, two, layers, heads, size).permute(1, 2, 0, 3, 4)
            return prefix(initial + pair)

        return Learner(leaves, build, form, config)


def given_prefix(lm: FrozenLM, given: PrefixPrompt, config: PrefixTuningConfig) -> Float[Tensor, "2 N P H K"]:
    """The prefix of an artefact. Raises: ConfigError where the length or the start asked for are others."""
    keys, values = given.sites["self"]
    if given.length != config.length or given.start != (config.length if config.start == "after" else 0):
        raise ConfigError(
            f"prefix-tuning: the start given has {given.length} positions with the text at {given.start}; set length="
            f"{given.length} and start={'zero' if given.start == 0 else 'after'}, or take another start."
        )
    return torch.stack([keys, values]).detach().float().clone().to(lm.device)


def mlp_leaves(lm: FrozenLM, shape: torch.Size, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A table of P rows of width D and a two-layer network to all keys and values; the last layer starts at zero."""
    two, layers, length, heads, size = shape
    width, out = lm.dims.width, two * layers * heads * size

    def uniform(*sizes: int, fan_in: int) -> Tensor:
        return (torch.rand(*sizes, generator=generator) * 2 - 1) / fan_in**0.5

    leaves = {
        "table": torch.randn(length, width, generator=generator),
        "down.weight": uniform(hidden, width, fan_in=width),
        "down.bias": uniform(hidden, fan_in=width),
        "up.weight": torch.zeros(out, hidden),
        "up.bias": torch.zeros(out),
    }
    return {name: leaf.to(lm.device).requires_grad_() for name, leaf in leaves.items()}


def initial_prefix(
    lm: FrozenLM, encoder: Encoder, config: PrefixTuningConfig, generator: torch.Generator
) -> Float[Tensor, "2 N P H K"]:
    """Keys and values a seed starts from, fp32. "random" draws them at the scale that words have there.

    Raises: ConfigError for "text" without a text.
    """
    if config.init == "text":
        ids = text_ids(encoder, config.init_text, "prefix-tuning", config.length)
    else:
        ids = torch.cat([*label_ids(encoder), sampled_ids(lm, config.length, generator)])[: config.length]
    keys, values = lm.prefix_from_words(ids.to(lm.device)).sites["self"]
    pair = torch.stack([keys, values]).detach().float().clone()
    if config.init == "random":
        scale = pair.std(dim=(2, 3, 4), keepdim=True)
        pair = torch.randn(pair.shape, generator=generator).to(pair.device) * scale
    return pair
