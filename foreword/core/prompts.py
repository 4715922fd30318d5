"""A prompt is a value: token ids, input embeddings, or keys and values of every layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from foreword.core.shapes import Float, Int, Tensor
from foreword.errors import ConfigError


@dataclass(frozen=True, eq=False)
class HardPrompt:
    """Token ids that fill a template's slots in order; empty when the template is all words."""

    ids_P: Int[Tensor, "P"]

    @property
    def length(self) -> int:
        return self.ids_P.shape[0]


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """Input embeddings that fill a template's slots in order (Lester et al. 2021)."""

    embed_PD: Float[Tensor, "P D"]

    @property
    def length(self) -> int:
        return self.embed_PD.shape[0]


@dataclass(frozen=True, eq=False)
class PrefixPrompt:
    """Keys and values of every layer at each attention site (Li & Liang 2021).

    `sites` maps "self" (and, for encoder-decoder models, "encoder" and "cross") to `(keys_NPHK, values_NPHK)`, of one
    length P; keys are stored as attention reads them, after any rotary embedding at positions 0..P-1. The text starts
    at position `start` in the encoder where there is a prefix of that site, and in the decoder where there is one of
    "self".
    """

    sites: dict[str, tuple[Float[Tensor, "N P H K"], Float[Tensor, "N P H K"]]]
    start: int

    @property
    def length(self) -> int:
        return next(iter(self.sites.values()))[0].shape[1]


Prompt = HardPrompt | SoftPrompt | PrefixPrompt


def same_prompt(one: Prompt, other: Prompt) -> bool:
    """Whether two prompts have the same form and equal tensors, bit for bit."""
    if isinstance(one, HardPrompt) and isinstance(other, HardPrompt):
        return torch.equal(one.ids_P, other.ids_P)
    if isinstance(one, SoftPrompt) and isinstance(other, SoftPrompt):
        return torch.equal(one.embed_PD, other.embed_PD)
    if isinstance(one, PrefixPrompt) and isinstance(other, PrefixPrompt):
        return (
            one.start == other.start
            and one.sites.keys() == other.sites.keys()
            and all(
                torch.equal(mine, theirs)
                for site in one.sites
                for mine, theirs in zip(one.sites[site], other.sites[site], strict=True)
            )
        )
    return False


def lower(prompt: HardPrompt | SoftPrompt, embed: Callable[[Tensor], Tensor]) -> SoftPrompt:
    """Hard to soft, by the embedding module's own output (always exact)."""
    if isinstance(prompt, SoftPrompt):
        return prompt
    return SoftPrompt(embed(prompt.ids_P[None])[0])


@dataclass(frozen=True, eq=False)
class Bank:
    """`T` prompts stacked and padded to the longest; a row of a batch names its prompt by index.

    `soft_TPD` fills slots; `keys_TNQHK` and `values_TNQHK` are prefixes of `prefix_length_T` columns, whose text starts
    at `start_T`. Either may be absent. A prompt without one of the two has length 0 there. They are those of the site
    "self"; `others` has those of an encoder-decoder model's "encoder" and "cross", of depths and sizes of their own.
    """

    soft_TPD: Float[Tensor, "T P D"] | None
    keys_TNQHK: Float[Tensor, "T N Q H K"] | None
    values_TNQHK: Float[Tensor, "T N Q H K"] | None
    prefix_length_T: Int[Tensor, "T"]
    start_T: Int[Tensor, "T"]
    others: Mapping[str, "Bank"] = field(default_factory=dict)

    @property
    def columns(self) -> int:
        """Columns of the longest prefix, at any site."""
        own = 0 if self.keys_TNQHK is None else self.keys_TNQHK.shape[2]
        return max([own, *(other.columns for other in self.others.values())])

    @property
    def size(self) -> int:
        return self.prefix_length_T.shape[0]


def _pad_first(tensors: Sequence[Tensor | None], axis: int) -> Tensor | None:
    """Stack tensors that differ along `axis` only, zero-padded; None where all are None or empty."""
    present = [t for t in tensors if t is not None and t.shape[axis]]
    if not present:
        return None
    longest = max(t.shape[axis] for t in present)
    like = present[0]
    shape = [*like.shape]
    padded = []
    for tensor in tensors:
        shape[axis] = longest - (0 if tensor is None else tensor.shape[axis])
        filler = like.new_zeros(shape)
        padded.append(filler if tensor is None else torch.cat([tensor, filler], dim=axis))
    return torch.stack(padded)


def stack(prompts: Sequence[Prompt], embed: Callable[[Tensor], Tensor], device: torch.device | str = "cpu") -> Bank:
    """Stack prompts of any forms and lengths into one bank; differentiable in the prompts' tensors."""
    if not prompts:
        raise ConfigError("A bank needs at least one prompt; none was given.")
    soft = [None if isinstance(p, PrefixPrompt) or not p.length else lower(p, embed).embed_PD for p in prompts]
    prefixes = [p if isinstance(p, PrefixPrompt) else None for p in prompts]
    names = {site for p in prefixes if p is not None for site in p.sites}
    return replace(
        _stack_site(prefixes, "self", device),
        soft_TPD=_pad_first([None if s is None else s.to(device) for s in soft], 0),
        others={site: _stack_site(prefixes, site, device) for site in sorted(names - {"self"})},
    )


def _stack_site(prefixes: Sequence[PrefixPrompt | None], site: str, device: torch.device | str) -> Bank:
    """The prefixes of one site; a prompt without it has length 0 there and starts its text at 0."""
    own = [p if p is not None and site in p.sites else None for p in prefixes]
    pairs = [None if p is None else p.sites[site] for p in own]
    return Bank(
        soft_TPD=None,
        keys_TNQHK=_pad_first([None if pair is None else pair[0].to(device) for pair in pairs], 1),
        values_TNQHK=_pad_first([None if pair is None else pair[1].to(device) for pair in pairs], 1),
        prefix_length_T=torch.tensor([0 if p is None else p.length for p in own], device=device),
        start_T=torch.tensor([0 if p is None else p.start for p in own], device=device),
    )
