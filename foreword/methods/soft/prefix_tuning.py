"""Learn keys and values of every layer by gradient (prefix tuning, Li & Liang 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch

from foreword.core.doc import Doc, documented
from foreword.core.prompts import PrefixPrompt
from foreword.core.shapes import Float, Tensor
from foreword.errors import ConfigError
from foreword.methods.soft.prompt_tuning import OWN, label_ids, sampled_ids, text_ids
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder
from foreword.training.contract import GradientConfig, GradientMethod, Job, Learner
from foreword.training.options import Count, Positive, Start
from foreword.training.warm_start import shares_in, started

Pairs = dict[str, Tensor]  # by site, keys and values in one: (2, N, P, H, K)


@documented
@dataclass(frozen=True)
class PrefixTuningConfig(GradientConfig):
    """Hold the options of prefix tuning.

    A reparametrised prefix is the initial prefix plus the output of an MLP over a small table, one for each site. The
    MLP has one tanh layer, runs once a step, gives zero at first, and is folded away when the prefix is saved. A prefix
    stands in front of the text; for positions between source and answer, use `place` of prompt-tuning. Of an artefact
    given as `init`, the record keeps the hash.
    """

    length: Annotated[Count, Doc("Positions of the prefix.")] = 20
    init: Annotated[
        Literal["labels", "text", "random"] | Start,
        Doc("Initialisation: activations of label words, of a text, random ones, or the folder of a prefix."),
    ] = "labels"
    init_text: Annotated[str, Doc("Text of init=text, which is cut or repeated to the length.")] = ""
    sites: Annotated[
        str,
        Doc("Attentions of an encoder-decoder model with a prefix: encoder, self, cross (with commas), or all."),
    ] = "all"
    reparametrise: Annotated[bool, Doc("Learn the prefix through a network (Li & Liang 2021, section 4.3).")] = False
    hidden: Annotated[Count, Doc("Units of the network's hidden layer.")] = 512
    start: Annotated[
        Literal["after", "zero"], Doc("Position of the text: after the prefix, or at zero (encoders only).")
    ] = "after"
    learning_rate: Annotated[
        Positive, Doc("Learning rate (not given: 0.02 for the prefix itself, 3e-4 for the network).")
    ] = OWN

    def __post_init__(self) -> None:
        if self.learning_rate == OWN:
            object.__setattr__(self, "learning_rate", 3e-4 if self.reparametrise else 0.02)


class PrefixTuning(GradientMethod):
    name = "prefix-tuning"
    summary = "learnt keys and values of every layer"
    source = "Li & Liang 2021; Liu et al. 2022 for classification"
    Config = PrefixTuningConfig
    form = "prefix"
    kinds = ("masked", "causal", "seq2seq")
    mixed_batch = True
    freezes_lm = True
    takes_init = "prefix"
    adapts = True
    answers = ("labels", "options", "text")

    def start(self, lm: FrozenLM, job: Job) -> Learner:
        config: PrefixTuningConfig = job.config
        lm.require_prefix()
        if config.start == "zero" and lm.kind != "masked":
            what = "a causal model's" if lm.kind == "causal" else "a decoder's"
            raise ConfigError(f"prefix-tuning: start=zero is for encoders; {what} text comes after its prefix.")
        if job.format.template.slots:
            raise ConfigError(
                "prefix-tuning needs no {soft:...} slots in the template; remove them, or use prompt-tuning."
            )
        form = job.format
        generator = torch.Generator().manual_seed(job.seed)
        learnt = started(lm, job)
        sites = chosen_sites(lm, config)
        if isinstance(learnt, PrefixPrompt):
            initial, start = given_prefix(lm, learnt, config, sites), learnt.start
        else:
            initial = initial_sites(lm, Encoder.build(lm, form), config, generator, sites)
            start = config.length if config.start == "after" else 0
        if not config.reparametrise:
            leaves = {_leaf(site, "pair"): pair.requires_grad_() for site, pair in initial.items()}
            return Learner(leaves, partial(_direct, sites, start), form, config, shares=shares_in(job, leaves))
        leaves: dict[str, Tensor] = {}
        for site, pair in initial.items():
            own = mlp_leaves(lm, pair.shape, config.hidden, generator)
            leaves |= {_leaf(site, name): leaf for name, leaf in own.items()}
        return Learner(leaves, partial(_folded, initial, start), form, config)


def chosen_sites(lm: FrozenLM, config: PrefixTuningConfig) -> tuple[str, ...]:
    """Return the sites that get a prefix, in the model's order. Raises: ConfigError for a site that it lacks."""
    if config.sites == "all":
        return tuple(lm.sites)
    named = [name.strip() for name in config.sites.split(",")]
    unknown = [name for name in named if name not in lm.sites]
    if unknown or len({*named}) != len(named):
        raise ConfigError(
            f"prefix-tuning: sites={config.sites!r} is not what {lm.name!r} has; choose among {', '.join(lm.sites)}, "
            "each once and with commas, or all."
        )
    return tuple(site for site in lm.sites if site in named)


def _leaf(site: str, name: str) -> str:
    """Return a leaf's name, which says the site unless it is the only one of most models."""
    return name if site == "self" else f"{site}.{name}"


def _direct(sites: tuple[str, ...], start: int, leaves: Mapping[str, Tensor]) -> PrefixPrompt:
    pairs = {site: leaves[_leaf(site, "pair")] for site in sites}
    return PrefixPrompt({site: (pair[0], pair[1]) for site, pair in pairs.items()}, start)


def _folded(initial: Pairs, start: int, leaves: Mapping[str, Tensor]) -> PrefixPrompt:
    """Run each site's network, and add its output to the site's initial activations."""
    pairs = {}
    for site, first in initial.items():
        weights = {
            name: leaves[_leaf(site, name)] for name in ("table", "down.weight", "down.bias", "up.weight", "up.bias")
        }
        hidden = torch.tanh(weights["table"] @ weights["down.weight"].T + weights["down.bias"])
        flat_PX = hidden @ weights["up.weight"].T + weights["up.bias"]
        two, layers, length, heads, size = first.shape
        pair = first + flat_PX.view(length, two, layers, heads, size).permute(1, 2, 0, 3, 4)
        pairs[site] = (pair[0], pair[1])
    return PrefixPrompt(pairs, start)


def given_prefix(lm: FrozenLM, prefix: PrefixPrompt, config: PrefixTuningConfig, sites: tuple[str, ...]) -> Pairs:
    """Return the prefix of an artefact. Raises: ConfigError if the config asks for other sites, length or start."""
    if prefix.length != config.length or prefix.start != (config.length if config.start == "after" else 0):
        raise ConfigError(
            f"prefix-tuning: the start given has {prefix.length} positions with the text at {prefix.start}; set length="
            f"{prefix.length} and start={'zero' if prefix.start == 0 else 'after'}, or take another start."
        )
    if {*sites} != {*prefix.sites}:
        raise ConfigError(
            f"prefix-tuning: the start given has a prefix at {', '.join(prefix.sites)} and {', '.join(sites)} was "
            f"asked for; set sites={','.join(prefix.sites)}, or take another start."
        )
    return {site: torch.stack(prefix.sites[site]).detach().float().clone().to(lm.device) for site in sites}


def mlp_leaves(lm: FrozenLM, shape: torch.Size, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw a table of P rows of width D, and a two-layer network to all keys and values; the last layer is zero."""
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
    """Return the initial keys and values of a seed, fp32, at the only site of a masked or causal model."""
    return initial_sites(lm, encoder, config, generator, ("self",))["self"]


def initial_sites(
    lm: FrozenLM, encoder: Encoder, config: PrefixTuningConfig, generator: torch.Generator, sites: tuple[str, ...]
) -> Pairs:
    """Return the initial keys and values of a seed, fp32. "random" draws them at the scale that words have there.

    Raises: ConfigError for "text" without a text.
    """
    if config.init == "text":
        ids = text_ids(encoder, config.init_text, "prefix-tuning", config.length)
    else:
        ids = torch.cat([*label_ids(encoder), sampled_ids(lm, config.length, generator)])[: config.length]
    words = lm.prefix_from_words(ids.to(lm.device))
    initial = {}
    for site in sites:
        pair = torch.stack(words.sites[site]).detach().float().clone()
        if config.init == "random":
            scale = pair.std(dim=(2, 3, 4), keepdim=True)
            pair = torch.randn(pair.shape, generator=generator).to(pair.device) * scale
        initial[site] = pair
    return initial
