"""Load an artefact together with the model that it is used with."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from foreword.cli.console import note
from foreword.cli.decoding import DecodingChoice, tell_set_aside
from foreword.cli.shared_options import ModelChoice

if TYPE_CHECKING:
    from foreword.inference.predictor import Prompted
    from foreword.models.base import FrozenLM
    from foreword.tasks.rows import Row

model_override = click.option("--model", metavar="MODEL", help="Use this model instead of the one the artefact names.")
other_weights = click.option(
    "--allow-other-weights", is_flag=True, help="Accept a model of the same shape with other weights."
)


def open_artefact(folder: str, model: str | None, how: ModelChoice, allow_other_weights: bool) -> "Prompted":
    """Load and check an artefact, then load the model that it names (or `model`), then check that the two fit.

    Raises: ArtefactError, ModelError.
    """
    from foreword.inference.predictor import open_with

    def load(name: str, kind: str | None) -> "FrozenLM":
        return how.with_kind(kind).load(name)

    opened, warning = open_with(folder, model, load, allow_other_weights)
    if warning:
        note(warning)
    return opened


def decoded(opened: "Prompted", written: DecodingChoice) -> "Prompted":
    """Return the artefact with the decoding given in place of its own. Raises: ConfigError as `DecodingChoice.put`."""
    artefact = opened.artefact
    form = written.put(artefact.format, "the artefact")
    tell_set_aside(opened.lm, form)
    return dataclasses.replace(opened, artefact=dataclasses.replace(artefact, format=form))


def tell_cuts(opened: "Prompted", rows: "Sequence[Row]") -> None:
    """Print a line on stderr if texts were too long and were cut."""
    from foreword.inference.generation import encode_to_write
    from foreword.inference.scoring import encode_value
    from foreword.models.encoding.encoder import count_cut

    artefact = opened.artefact
    if opened.lm is None:
        return
    if artefact.format.decoding is None:
        encoded = encode_value(opened.lm, artefact.value, artefact.format, rows)
    else:
        encoded = encode_to_write(opened.lm, artefact.format, rows, artefact.value.text_start)
    cut, tokens = count_cut(encoded)
    if cut:
        note(f"{cut} of {len(encoded)} rows were too long and lost {tokens} tokens ({artefact.format.truncate} cut)")


def tell_shown(opened: "Prompted", rows: "Sequence[Row]") -> None:
    """Print a line on stderr if rows to be measured stand in the prompt with their answers."""
    from foreword.core.template import Literal

    parts = opened.artefact.value.parts(opened.artefact.format)
    texts = {p.text for _, form in parts for p in form.template.parts if isinstance(p, Literal) and p.data}
    shown = sum(all(text in texts for text in row.fields.values()) for row in rows)
    if shown:
        note(f"{shown} of {len(rows)} rows are demonstrations of this prompt, which has their answers")
