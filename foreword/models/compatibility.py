"""Check whether an artefact may be used with a model, and convert it to how this model reads it."""

import dataclasses

from foreword.core.artefact import Artefact, check_fits
from foreword.core.format import RECORDED_SINCE, Format
from foreword.errors import ArtefactError
from foreword.models.base import FrozenLM
from foreword.models.encoding.chat_template import undated
from foreword.models.encoding.encoder import Encoder


def suited(lm: FrozenLM, artefact: Artefact) -> Artefact:
    """Return the artefact as this model reads it: words made for a masked model may be put to a causal one, and back.

    Raises: ConfigError for a template that cannot be.
    """
    value = artefact.value
    if not value.any_model or not value.needs_model or artefact.model.get("kind") == lm.kind:
        return artefact
    value = value.with_formats(lambda form: _for_kind(form, lm.kind))
    return dataclasses.replace(artefact, value=value, format=_for_kind(artefact.format, lm.kind))


def _for_kind(form: Format, kind: str) -> Format:
    return dataclasses.replace(form, template=form.template.for_kind(kind))


def check(lm: FrozenLM, artefact: Artefact, *, allow_other_weights: bool = False) -> str | None:
    """Check that this artefact may be used with this model; return a warning line or None.

    Raises: ArtefactError that says what does not fit.
    """
    if not artefact.value.needs_model:
        return None
    lines = [line for line in (_undated(lm, artefact), _check(lm, artefact, allow_other_weights)) if line]
    return " ".join(lines) or None


def _undated(lm: FrozenLM, artefact: Artefact) -> str | None:
    """Return a line if a chat template shows a date and the artefact records none."""
    if all(undated(lm.tokenizer, form) is None for _, form in artefact.value.parts(artefact.format)):
        return None
    return (
        f"The chat template of {lm.name!r} shows a date, and the artefact records none; it is read with "
        f"{RECORDED_SINCE} on every day. Train it again to record the day on which it is made."
    )


def _check(lm: FrozenLM, artefact: Artefact, allow_other_weights: bool) -> str | None:
    if artefact.any_model:
        _check_slots(lm, suited(lm, artefact))
        return None
    kind = artefact.model.get("kind")
    if kind != lm.kind:
        raise ArtefactError(
            f"This artefact was made for a {kind} model and {lm.name!r} is loaded as {lm.kind}; load it with "
            f"--kind {kind}."
        )
    warning = check_fits(artefact, vars(lm.fingerprint()), lm.name, allow_other_weights=allow_other_weights)
    artefact.value.check_model(lm)  # what a record says of its model may be untrue
    _check_slots(lm, artefact)
    return warning


def _check_slots(lm: FrozenLM, artefact: Artefact) -> None:
    """Check that a template has as many slots as there are positions to fill them with. Raises: ArtefactError."""
    for value, form in artefact.value.parts(artefact.format):
        if value.as_prompt is None or value.rewrites_rows:
            continue
        positions = Encoder.build(lm, form).prompt_length
        if positions != value.slots:
            raise ArtefactError(
                f"The artefact has a prompt of {value.slots} positions and a template with slots for {positions}; the "
                "artefact is damaged."
            )
