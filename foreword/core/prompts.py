"""Hold a prompt as a value: token ids, input embeddings, or keys and values of every layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch

from foreword.core.learnt import Prompt, Reader, check_width
from foreword.core.record import is_whole
from foreword.core.serialise import check_ranks
from foreword.core.shapes import Float, Int, Tensor
from foreword.core.text import shown
from foreword.errors import ArtefactError, ConfigError

SITES = ("self", "encoder", "cross")


@final
@dataclass(frozen=True, eq=False)
class HardPrompt(Prompt, form="hard"):
    """Hold token ids that fill a template's slots in order; none if the template is all words."""

    ids_P: Int[Tensor, "P"]

    @staticmethod
    def empty() -> "HardPrompt":
        """Return the prompt of a template without slots."""
        return HardPrompt(torch.zeros(0, dtype=torch.long))

    @property
    def length(self) -> int:
        return self.ids_P.shape[0]

    @property
    def any_model(self) -> bool:
        return not self.length  # token ids are of one tokenizer

    def tensors(self) -> dict[str, Tensor]:
        return {"ids": self.ids_P} if self.length else {}

    def record(self) -> dict[str, Any]:
        return {"length": self.length}

    @classmethod
    def tensor_names(cls, record: Mapping[str, Any]) -> set[str]:
        return {"ids"} if record["length"] else set()

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "HardPrompt":
        ids_P = tensors.get("ids", torch.zeros(0, dtype=torch.long))
        if not is_whole(record["length"], 0) or ids_P.ndim != 1 or len(ids_P) != record["length"]:
            raise ArtefactError("tensor 'ids' is not a list of token ids of the recorded length.")
        if len(ids_P) and int(ids_P.min()) < 0:
            raise ArtefactError(f"tensor 'ids' holds the token id {int(ids_P.min())}; none is below 0.")
        return HardPrompt(ids_P)

    def check_model(self, lm: Reader) -> None:
        # Refused before a GPU looks it up: after that it can compute nothing more.
        if self.length and int(self.ids_P.max()) >= lm.dims.vocab:
            raise ArtefactError(
                f"The prompt has the token id {int(self.ids_P.max())}, and {lm.name!r} has {lm.dims.vocab:,} tokens; "
                "the artefact is damaged, or was made for another model."
            )


@final
@dataclass(frozen=True, eq=False)
class SoftPrompt(Prompt, form="soft", stored={"embed": "embed_PD"}):
    """Hold input embeddings that fill a template's slots in order (Lester et al. 2021)."""

    embed_PD: Float[Tensor, "P D"]

    @property
    def length(self) -> int:
        return self.embed_PD.shape[0]

    def record(self) -> dict[str, Any]:
        return {"shape": list(self.embed_PD.shape)}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "SoftPrompt":
        shape = list(tensors["embed"].shape)
        if shape != record["shape"]:
            raise ArtefactError(f"tensor 'embed' has shape {shape}, its record says {shown(record['shape'])}.")
        check_ranks(tensors, embed=2)
        return SoftPrompt(tensors["embed"])

    def check_model(self, lm: Reader) -> None:
        check_width(lm, self.embed_PD.shape[1])


@final
@dataclass(frozen=True, eq=False)
class PrefixPrompt(Prompt, form="prefix"):
    """Hold keys and values of every layer at each attention site (Li & Liang 2021).

    `sites` maps "self" (and, for encoder-decoder models, "encoder" and "cross") to `(keys_NPHK, values_NPHK)`, of one
    length P; keys are stored as attention reads them, after any rotary embedding at positions 0..P-1. The text starts
    at position `start` in the encoder if there is a prefix of that site, and in the decoder if there is one of "self".
    """

    sites: dict[str, tuple[Float[Tensor, "N P H K"], Float[Tensor, "N P H K"]]]
    start: int

    @property
    def length(self) -> int:
        return next(iter(self.sites.values()))[0].shape[1]

    @property
    def slots(self) -> int:
        return 0

    @property
    def text_start(self) -> int:
        return self.start

    def tensors(self) -> dict[str, Tensor]:
        parts = ("keys", "values")
        return {f"{site}.{part}": t for site, pair in self.sites.items() for part, t in zip(parts, pair, strict=True)}

    def record(self) -> dict[str, Any]:
        return {"start": self.start, "sites": {site: list(keys.shape) for site, (keys, _) in self.sites.items()}}

    @classmethod
    def tensor_names(cls, record: Mapping[str, Any]) -> set[str]:
        return {f"{site}.{part}" for site in record["sites"] for part in ("keys", "values")}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "PrefixPrompt":
        sites: dict[str, tuple[Tensor, Tensor]] = {}
        for site, shape in record["sites"].items():
            if site not in SITES:
                raise ArtefactError(f"the prefix stands at {site[:80]!r}; it can stand at {', '.join(SITES)}.")
            pair = tensors[f"{site}.keys"], tensors[f"{site}.values"]
            if any(list(t.shape) != shape for t in pair):
                raise ArtefactError(
                    f"the prefix of site {site!r} has shape {list(pair[0].shape)}, its record says {shown(shape)}."
                )
            if pair[0].ndim != 4 or pair[0].dtype != pair[1].dtype:
                raise ArtefactError(f"the prefix of site {site!r} has shape {shown(shape)}; 4 sizes were expected.")
            sites[site] = pair
        if len({pair[0].shape[1] for pair in sites.values()}) != 1:
            raise ArtefactError("the prefix has no site, or sites of different lengths.")
        if not is_whole(record["start"], 0, 2**31):
            raise ArtefactError(f"start is {shown(record['start'])}; it must be a whole number, 0 or more.")
        return PrefixPrompt(sites, record["start"])

    def check_model(self, lm: Reader) -> None:
        lm.require_prefix()
        unknown = [site for site in self.sites if site not in lm.sites]
        if unknown or not self.sites:
            raise ArtefactError(
                f"The prefix stands at {', '.join(unknown) or 'no site'}; {lm.name!r} has {', '.join(lm.sites)}: the "
                "artefact is damaged, or was made for a model of another kind."
            )
        for site, pair in self.sites.items():
            sizes = lm.sites[site]
            wanted = (sizes.layers, self.length, sizes.heads, sizes.head_size)
            odd = next((tuple(t.shape) for t in pair if tuple(t.shape) != wanted), None)
            if odd is not None:
                raise ArtefactError(
                    f"The prefix has keys and values of shape {odd} at the site {site!r}, where {lm.name!r} has "
                    f"{wanted} (layers, positions, heads, head size); the artefact is damaged."
                )

    def details(self) -> dict[str, Any]:
        if {*self.sites} == {"self"}:
            return {}
        sizes = {site: keys.shape for site, (keys, _) in self.sites.items()}
        return {"sites": {site: f"{n} layers, {heads} heads of {size}" for site, (n, _, heads, size) in sizes.items()}}


def same_prompt(one: Prompt, other: Prompt) -> bool:
    """Return whether two prompts have the same form and equal tensors, bit for bit."""
    if one.form != other.form or one.record() != other.record():
        return False
    theirs = other.tensors()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.tensors().items())


def lower(prompt: Prompt, embed: Callable[[Tensor], Tensor]) -> SoftPrompt:
    """Turn a hard prompt into a soft one by the embedding module's own output (always exact); keep a soft one."""
    if isinstance(prompt, SoftPrompt):
        return prompt
    assert isinstance(prompt, HardPrompt), "a prefix fills no slots"
    return SoftPrompt(embed(prompt.ids_P[None])[0])


@dataclass(frozen=True, eq=False)
class Bank:
    """Hold `T` prompts, stacked and padded to the longest; a row of a batch names its prompt by index.

    `soft_TPD` fills slots; `keys_TNQHK` and `values_TNQHK` are prefixes of `prefix_length_T` columns, whose text starts
    at `start_T`. Either may be absent. A prompt without one of the two has length 0 there. They are those of the site
    "self"; `others` has those of an encoder-decoder model's "encoder" and "cross", which differ in depth and size.
    """

    soft_TPD: Float[Tensor, "T P D"] | None
    keys_TNQHK: Float[Tensor, "T N Q H K"] | None
    values_TNQHK: Float[Tensor, "T N Q H K"] | None
    prefix_length_T: Int[Tensor, "T"]
    start_T: Int[Tensor, "T"]
    others: Mapping[str, "Bank"] = field(default_factory=dict)

    @property
    def columns(self) -> int:
        """Return the columns of the longest prefix, at any site."""
        columns = 0 if self.keys_TNQHK is None else self.keys_TNQHK.shape[2]
        return max([columns, *(other.columns for other in self.others.values())])

    @property
    def size(self) -> int:
        return self.prefix_length_T.shape[0]


def _pad_first(tensors: Sequence[Tensor | None], axis: int) -> Tensor | None:
    """Stack tensors that differ along `axis` only, zero-padded; return None if all are None or empty."""
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
    soft = [lower(p, embed).embed_PD if p.slots else None for p in prompts]
    prefixes = [p if isinstance(p, PrefixPrompt) else None for p in prompts]
    names = {site for p in prefixes if p is not None for site in p.sites}
    return replace(
        _stack_site(prefixes, "self", device),
        soft_TPD=_pad_first([None if s is None else s.to(device) for s in soft], 0),
        others={site: _stack_site(prefixes, site, device) for site in sorted(names - {"self"})},
    )


def _stack_site(prefixes: Sequence[PrefixPrompt | None], site: str, device: torch.device | str) -> Bank:
    """Stack the prefixes of one site; a prompt without it has length 0 there and starts its text at 0."""
    present = [p if p is not None and site in p.sites else None for p in prefixes]
    pairs = [None if p is None else p.sites[site] for p in present]
    return Bank(
        soft_TPD=None,
        keys_TNQHK=_pad_first([None if pair is None else pair[0].to(device) for pair in pairs], 1),
        values_TNQHK=_pad_first([None if pair is None else pair[1].to(device) for pair in pairs], 1),
        prefix_length_T=torch.tensor([0 if p is None else p.length for p in present], device=device),
        start_T=torch.tensor([0 if p is None else p.start for p in present], device=device),
    )
