"""Whether an artefact may be used with a model, and how this model reads it."""

import dataclasses

from foreword.core.artefact import Artefact, check_fits
from foreword.core.format import RECORDED_SINCE, Format
from foreword.core.prompts import HardPrompt, PrefixPrompt, SoftPrompt
from foreword.core.values import Ensemble, Learnt, LowRank, Probe, PromptPool, Tuned, Weights, WordCounts
from foreword.errors import ArtefactError
from foreword.models.base import FrozenLM
from foreword.models.encoding.chat_template import undated
from foreword.models.encoding.encoder import Encoder


def suited(lm: FrozenLM, artefact: Artefact) -> Artefact:
    """The artefact as this model reads it: words made for a masked model may be put to a causal one, and back.

    Raises: ConfigError where the template cannot be.
    """
    if not artefact.any_model or isinstance(artefact.value, WordCounts) or artefact.model.get("kind") == lm.kind:
        return artefact
    value = artefact.value
    if isinstance(value, Ensemble):
        members = tuple(dataclasses.replace(m, format=_for_kind(m.format, lm.kind)) for m in value.members)
        value = dataclasses.replace(value, members=members)
    return dataclasses.replace(artefact, value=value, format=_for_kind(artefact.format, lm.kind))


def _for_kind(form: Format, kind: str) -> Format:
    return dataclasses.replace(form, template=form.template.for_kind(kind))


def check(lm: FrozenLM, artefact: Artefact, *, allow_other_weights: bool = False) -> str | None:
    """Whether this artefact may be used with this model; a warning line or None.

    Raises: ArtefactError that says what does not fit.
    """
    if isinstance(artefact.value, WordCounts):
        return None
    lines = [line for line in (_undated(lm, artefact), _check(lm, artefact, allow_other_weights)) if line]
    return " ".join(lines) or None


def _undated(lm: FrozenLM, artefact: Artefact) -> str | None:
    """A line if a chat template shows a date and the artefact records none."""
    value = artefact.value
    forms = [member.format for member in value.members] if isinstance(value, Ensemble) else [artefact.format]
    if all(undated(lm.tokenizer, form) is None for form in forms):
        return None
    return (
        f"The chat template of {lm.name!r} shows a date, and the artefact records none; it is read with "
        f"{RECORDED_SINCE} on every day. Train it again to record the day on which it is made."
    )


def _check(lm: FrozenLM, artefact: Artefact, allow_other_weights: bool) -> str | None:
    if artefact.any_model:
        _check_slots(lm, suited(lm, artefact))
        return None
    made = artefact.model.get("kind")
    if made != lm.kind:
        raise ArtefactError(
            f"This artefact was made for a {made} model and {lm.name!r} is loaded as {lm.kind}; load it with "
            f"--kind {made}."
        )
    warning = check_fits(artefact, vars(lm.fingerprint()), lm.name, allow_other_weights=allow_other_weights)
    value = artefact.value
    for part in [member.value for member in value.members] if isinstance(value, Ensemble) else [value]:
        _check_tensors(lm, part)
    _check_slots(lm, artefact)
    return warning


def _check_tensors(lm: FrozenLM, value: Learnt) -> None:
    """What a record says of its model may be untrue: the tensors themselves have to fit.

    A token id outside of the vocabulary is refused before a GPU looks it up: after that it can compute nothing more.
    """
    if isinstance(value, HardPrompt) and value.length and int(value.ids_P.max()) >= lm.dims.vocab:
        raise ArtefactError(
            f"The prompt has the token id {int(value.ids_P.max())}, and {lm.name!r} has {lm.dims.vocab:,} tokens; the "
            "artefact is damaged, or was made for another model."
        )
    if isinstance(value, Tuned):
        _check_tensors(lm, value.prompt)
        _check_tensors(lm, value.weights)
    if isinstance(value, PrefixPrompt):
        _check_sites(lm, value)
    width = lm.dims.width
    if isinstance(value, SoftPrompt):
        width = value.embed_PD.shape[1]
    elif isinstance(value, PromptPool):
        width = value.values_KPD.shape[2]
    elif isinstance(value, Probe):
        width = value.weight_CD.shape[1]
    if width != lm.dims.width:
        raise ArtefactError(f"The artefact has vectors of {width} numbers; {lm.name!r} has {lm.dims.width}.")
    if isinstance(value, Weights | LowRank):
        _check_weights(lm, value)


def _check_weights(lm: FrozenLM, value: Weights | LowRank) -> None:
    weights = lm.named_weights()
    if isinstance(value, Weights):
        shapes = {name: tuple(tensor.shape) for name, tensor in value.tensors.items()}
    else:
        shapes = {name: (up.shape[0], down.shape[1]) for name, (down, up) in value.factors.items()}
        shapes |= {name: shape[::-1] for name, shape in shapes.items() if name in value.transposed}
    for name, shape in shapes.items():
        wanted = tuple(weights[name].shape) if name in weights else None
        if wanted is None:
            raise ArtefactError(f"The artefact changes the weights {name[:200]!r}, which {lm.name!r} does not have.")
        if wanted != shape:
            raise ArtefactError(f"The artefact's {name!r} are of shape {shape}; {lm.name!r} has {wanted}.")
    if isinstance(value, Weights) and len(shapes) < len(weights):
        # Those of a whole model may be of another dtype; some of them beside the others may not.
        odd = next((name for name, tensor in value.tensors.items() if tensor.dtype != weights[name].dtype), None)
        if odd is not None:
            raise ArtefactError(
                f"The artefact's {odd!r} are in {value.tensors[odd].dtype} and those of {lm.name!r} in "
                f"{weights[odd].dtype}; load the model with the dtype that the artefact was made with (--dtype)."
            )


def _check_slots(lm: FrozenLM, artefact: Artefact) -> None:
    """Whether a template has as many slots as there are positions to fill them with."""
    value = artefact.value
    if isinstance(value, Ensemble):
        parts = [(member.value, member.format) for member in value.members]
    else:
        parts = [(value.prompt if isinstance(value, Tuned) else value, artefact.format)]
    for part, form in parts:
        # A prefix and weights fill no slots, and neighbours are written in row by row.
        if not isinstance(part, HardPrompt | SoftPrompt):
            continue
        positions = Encoder.build(lm, form).prompt_length
        if positions != part.length:
            raise ArtefactError(
                f"The artefact has a prompt of {part.length} positions and a template with slots for {positions}; the "
                "artefact is damaged."
            )


def _check_sites(lm: FrozenLM, value: PrefixPrompt) -> None:
    """What a record says of its model may be untrue: the tensors themselves have to fit."""
    lm.require_prefix()
    unknown = [site for site in value.sites if site not in lm.sites]
    if unknown or not value.sites:
        raise ArtefactError(
            f"The prefix stands at {', '.join(unknown) or 'no site'}; {lm.name!r} has {', '.join(lm.sites)}: the "
            "artefact is damaged, or was made for a model of another kind."
        )
    for site, pair in value.sites.items():
        sizes = lm.sites[site]
        wanted = (sizes.layers, value.length, sizes.heads, sizes.head_size)
        found = next((tuple(t.shape) for t in pair if tuple(t.shape) != wanted), None)
        if found is not None:
            raise ArtefactError(
                f"The prefix has keys and values of shape {found} at the site {site!r}, where {lm.name!r} has {wanted} "
                "(layers, positions, heads, head size); the artefact is damaged."
            )
