"""`foreword evaluate`: an artefact's metrics on labelled rows."""

import dataclasses
from typing import TYPE_CHECKING

import click

from foreword.cli.choices import DataChoice, ModelChoice, data_options, model_options
from foreword.cli.console import note, print_json, table
from foreword.cli.lists import json_flag
from foreword.cli.opened import model_override, open_artefact, other_weights, tell_cuts, tell_shown
from foreword.errors import ConfigError, DataError

if TYPE_CHECKING:
    from foreword.tasks.rows import Row
    from foreword.tasks.task import Task

NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "nll": "neg. log-likelihood", "ece": "calibration error"}


@click.command(short_help="Measure an artefact on labelled rows.")
@click.argument("artefact", metavar="ARTEFACT")
@click.option("--data", required=True, metavar="SOURCE", help="DIR, FILE, hf:owner/name[:config] or builtin:name.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test", "all"]),
    default="test",
    show_default=True,
    help="The rows to measure; `all` takes every row of a file that holds a test set alone.",
)
@model_override
@other_weights
@json_flag
@data_options
@model_options
def evaluate(
    artefact: str,
    data: str,
    split: str,
    model: str | None,
    allow_other_weights: bool,
    as_json: bool,
    which: DataChoice,
    how: ModelChoice,
) -> None:
    """Measure ARTEFACT on labelled rows, with 95% intervals over the rows.

    \b
    foreword evaluate artefacts/x --data data/sst2 --split test
    """
    import numpy as np

    from foreword.evaluation.statistics import MEASURES, interval, resample
    from foreword.tasks.metrics import log_probabilities

    rows, task = _rows(artefact, data, split, which)
    opened = open_artefact(artefact, model, how, allow_other_weights)
    labels = opened.artefact.format.labels
    score_NC = opened.scores(rows).double().cpu().numpy()
    logprob_NC, label_N = log_probabilities(score_NC), np.array([row.label for row in rows])
    names = [name for name in MEASURES if labels or name != "macro_f1"]
    found = {name: interval([resample(name, logprob_NC, label_N)]) for name in names}
    if as_json:
        metrics = {n: {"value": i.mean, "low": i.low, "high": i.high} for n, i in found.items()}
        print_json({"artefact": artefact, "split": split, "rows": len(rows), "hash": task.hashes(), "metrics": metrics})
        return
    table(
        ["metric", "value", "95% interval"],
        [(NAMES[n], f"{i.mean:.3f}", f"{i.low:.3f} to {i.high:.3f}") for n, i in found.items()],
        numbers=(1, 2),
    )
    made = opened.artefact.model["name"]
    moved = f", read by {opened.lm.name}; made for {made}" if opened.lm and opened.lm.name != made else ""
    note(f"{len(rows)} {split} rows of {task.name}{moved}")
    tell_cuts(opened, rows)
    tell_shown(opened, rows)


def _rows(artefact: str, data: str, split: str, which: DataChoice) -> "tuple[list[Row], Task]":
    """Labelled rows with the artefact's labels, their texts under the names that its template has for them."""
    from foreword.core.artefact import Artefact
    from foreword.tasks.rows import Row

    made = Artefact.load(artefact)
    columns = which.text or made.fields
    if len(columns) != len(made.fields):
        raise ConfigError(
            f"The artefact reads {len(made.fields)} texts ({', '.join(made.fields)}); give --text for each."
        )
    which = dataclasses.replace(which, text=columns)
    task = which.read(data, labels=made.format.labels or None)
    splits = ("train", "validation", "test") if split == "all" else (split,)
    found = [row for name in splits for row in task.rows(name)]
    if not found:
        raise DataError(f"{data} has no {split} rows; choose another --split, or --split all for the whole file.")
    for row in found:
        if row.label is None:
            raise DataError(f"{row.where} has no label, so it cannot be measured; label it, or use `foreword predict`.")
    names = dict(zip(columns, made.fields, strict=True))
    renamed = [Row({names[c]: row.fields[c] for c in columns}, row.label, row.options, row.where) for row in found]
    return renamed, task
