"""Whether an artefact may be used with a model, and how this model reads it."""

import dataclasses

from foreword.core.artefact import Artefact, check_fits
from foreword.core.format import RECORDED_SINCE, Format
from foreword.core.learnt import Ensemble, WordCounts
from foreword.core.prompts import PrefixPrompt
from foreword.errors import ArtefactError
from foreword.models.base import FrozenLM
from foreword.models.rendering import frozen


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
    lines = [line for line in (_undated(lm, artefact), _check(lm, artefact, allow_other_weights)) if line]
    return " ".join(lines) or None


def _undated(lm: FrozenLM, artefact: Artefact) -> str | None:
    """A line if a chat template shows a date and the artefact records none."""
    value = artefact.value
    forms = [member.format for member in value.members] if isinstance(value, Ensemble) else [artefact.format]
    undated = next((form for form in forms if frozen(lm.tokenizer, form) is not form), None)
    if undated is None:
        return None
    return (
        f"The chat template of {lm.name!r} shows a date, and the artefact records none; it is read with "
        f"{RECORDED_SINCE} on every day. Train it again to record the day on which it is made."
    )


def _check(lm: FrozenLM, artefact: Artefact, allow_other_weights: bool) -> str | None:
    if artefact.any_model:
        return None
    made = artefact.model.get("kind")
    if made != lm.kind:
        raise ArtefactError(
            f"This artefact was made for a {made} model and {lm.name!r} is loaded as {lm.kind}; load it with "
            f"--kind {made}."
        )
    warning = check_fits(artefact, vars(lm.fingerprint()), lm.name, allow_other_weights=allow_other_weights)
    if isinstance(artefact.value, PrefixPrompt):
        _check_sites(lm, artefact.value)
    return warning


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
