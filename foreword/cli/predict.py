"""Define `foreword predict`: labels of texts, or answers to them, from the command line or from stdin."""

import io
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from foreword.cli.console import print_json
from foreword.cli.decoding import DecodingChoice
from foreword.cli.lists import json_flag
from foreword.cli.loading import decoded, model_override, open_artefact, other_weights
from foreword.cli.shared_options import ModelChoice, decoding_options, model_options
from foreword.errors import DataError

if TYPE_CHECKING:
    from foreword.inference.predictor import Prediction, Prompted
    from foreword.tasks.rows import Row

CHUNK = 256


@click.command(short_help="Label texts, from arguments or stdin.")
@click.argument("artefact", metavar="ARTEFACT")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@model_override
@other_weights
@json_flag
@decoding_options
@model_options
def predict(
    artefact: str,
    texts: tuple[str, ...],
    model: str | None,
    allow_other_weights: bool,
    as_json: bool,
    written: DecodingChoice,
    how: ModelChoice,
) -> None:
    """Print the label of each TEXT, or of each line of stdin; or the answer that is written to it, in one line.

    Where the artefact reads several fields, or each row brings its own options, a text is a JSON object of them:
    {"text_a": "...", "text_b": "..."} or {"question": "...", "options": ["yes", "no"]}. With --json the row's fields
    stand beside the prediction, or under "fields" if one is called as a part of the prediction is.

    \b
    foreword predict artefacts/x "a fine film"
    foreword predict artefacts/x --json < texts.txt
    """
    opened = decoded(open_artefact(artefact, model, how, allow_other_weights), written)
    writes = opened.artefact.format.answers == "text"
    where = "TEXT" if texts else "stdin, line"
    lines = enumerate(texts or _lines(), start=1)
    rows = (_row(opened, text, f"{where} {number}") for number, text in lines if texts or text.strip())
    for chunk in _chunks(rows):
        for row, result in zip(chunk, opened.predict_rows(chunk), strict=True):
            if as_json:
                told = _shown(opened, result)
                print_json({**({"fields": dict(row.fields)} if told.keys() & row.fields else row.fields), **told})
            else:
                click.echo(" ".join(result.label.split()) if writes else result.label)


def _shown(opened: "Prompted", found: "Prediction") -> dict[str, Any]:
    """Return a prediction as JSON; a missing answer is null."""
    shares = {label: round(p, 6) for label, p in found.probabilities.items()}
    texts = {"texts": list(found.texts)} if found.texts else {}
    if opened.artefact.format.answers == "text":
        votes = {"votes": shares} if len(found.texts) > 1 else {}
        return {"answer": found.label or None, **votes, **texts}
    return {"label": found.label or None, "probabilities": shares, **texts}


def _lines() -> "Iterator[str]":
    """Yield lines of stdin in UTF-8, or in UTF-16 with a byte-order mark, in any locale; the mark is left out."""
    from foreword.tasks.sources import encoding_of

    if isinstance(sys.stdin, io.TextIOWrapper) and isinstance(sys.stdin.buffer, io.BufferedReader):
        # Bytes that are not UTF-8 go on as surrogates, so that the row that has them is refused by its number.
        sys.stdin.reconfigure(encoding=encoding_of(sys.stdin.buffer.peek(4)[:4]), errors="surrogateescape")
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not the {error.encoding} that its mark says; give UTF-8.") from error


def _row(opened: "Prompted", text: str, where: str) -> "Row":
    from foreword.core.text import parse_json
    from foreword.tasks.input_rows import row_of

    artefact = opened.artefact
    if len(artefact.fields) == 1 and artefact.format.answers != "options":
        return row_of(artefact, text, where)
    try:
        given = parse_json(text, once=True)
    except ValueError as error:
        if text.lstrip().startswith("{"):
            raise DataError(f"{where} is not JSON ({error}); give one object of fields.") from error
        given = None
    return row_of(artefact, given if isinstance(given, dict) else {}, where)


def _chunks(rows: "Iterable[Row]") -> "Iterator[list[Row]]":
    waiting = iter(rows)
    while chunk := list(islice(waiting, CHUNK)):
        yield chunk
