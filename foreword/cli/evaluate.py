"""Define `foreword evaluate`: an artefact's metrics on labelled rows."""

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from foreword.cli.console import note, print_json, table
from foreword.cli.decoding import DecodingChoice
from foreword.cli.lists import json_flag
from foreword.cli.loading import decoded, model_override, open_artefact, other_weights, tell_cuts, tell_shown
from foreword.cli.shared_options import DataChoice, ModelChoice, data_options, decoding_options, model_options
from foreword.errors import ConfigError, DataError

if TYPE_CHECKING:
    from foreword.evaluation.predictions import Found
    from foreword.evaluation.statistics import Interval
    from foreword.inference.predictor import Prompted
    from foreword.tasks.rows import Row
    from foreword.tasks.task import Task

NAMES = {"nll": "neg. log-likelihood"}  # others as in the tables of comparisons


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
@decoding_options
@model_options
def evaluate(
    artefact: str,
    data: str,
    split: str,
    model: str | None,
    allow_other_weights: bool,
    as_json: bool,
    which: DataChoice,
    written: DecodingChoice,
    how: ModelChoice,
) -> None:
    """Measure ARTEFACT on labelled rows, with 95% intervals over the rows.

    \b
    foreword evaluate artefacts/x --data data/sst2 --split test
    """
    from foreword.evaluation.report import BY, NOT_MEASURED, title
    from foreword.evaluation.statistics import interval
    from foreword.tasks.text_metric import recorded

    rows, task = _rows(artefact, data, split, which)
    opened = decoded(open_artefact(artefact, model, how, allow_other_weights), written)
    reading, samples = read(opened, task, rows)
    names = [*reading.metrics(closed=bool(opened.artefact.format.labels))]
    results = {name: interval([one]) for name, one in reading.resampled(names).items()}
    by = task.judge.tokenizers([row.targets for row in rows]) if task.metric else {}
    if as_json:
        metrics = {n: recorded({"value": i.mean, "low": i.low, "high": i.high}) for n, i in results.items()}
        told = {"artefact": artefact, "split": split, "rows": len(rows), "fields": list(task.fields)}
        told |= {"hash": task.hashes(), "metrics": metrics} | ({"tokenizers": by} if by else {})
        print_json(told | ({"samples": samples} if samples else {}))
        return
    table(
        ["metric", "value", "95% interval"],
        [
            *((NAMES.get(n, title(n)), *(_shown(i) if i.measured else (NOT_MEASURED, ""))) for n, i in results.items()),
            ("text in", ", ".join(task.fields), ""),
        ],
        numbers=(1, 2),
    )
    made = opened.artefact.model["name"]
    moved = f", read by {opened.lm.name}; made for {made}" if opened.lm and opened.lm.name != made else ""
    note(f"{len(rows)} {split} rows of {task.name}{moved}")
    if samples and samples["asked"] > samples["drawn"]:
        note(
            f"{samples['drawn']:,} of {samples['asked']:,} samples were drawn; the other "
            f"{samples['asked'] - samples['drawn']:,} could not have changed a vote"
        )
    if samples and samples["majority"]:
        told = ", ".join(f"{k} {value:.3f}" for k, value in samples["majority"].items())
        note(f"a majority of k samples is right (unbiased, k and share): {told}")
    for name, tokenizer in by.items():
        note(f"{title(name)} reads {BY.get(tokenizer, tokenizer)}")
    if samples and samples["silent"]:
        note(f"in {samples['silent']} of {len(rows)} rows no answer was found; they count as wrong")
    if samples and samples["cut"]:
        note(
            f"{samples['cut']:,} of {samples['drawn']:,} texts were cut, with no end where their tokens ran out; "
            "--max-new-tokens gives them more"
        )
    tell_cuts(opened, rows)
    tell_shown(opened, rows)


def _shown(of: "Interval") -> tuple[str, str]:
    return f"{of.mean:.3f}", f"{of.low:.3f} to {of.high:.3f}"


def read(opened: "Prompted", task: "Task", rows: "list[Row]") -> "tuple[Found, dict[str, Any]]":
    """Return the artefact's answers to the rows, and figures of its samples (none if labels are scored).

    The figures are the samples asked for and drawn, texts that were cut, the share of right majorities of fewer
    samples, and rows without an answer.
    """
    import numpy as np

    from foreword.evaluation.predictions import Scored, TextPredictions
    from foreword.inference.answers import judged, majority_curve
    from foreword.inference.predictor import require_same_answers
    from foreword.inference.reasoning import vote_scores
    from foreword.tasks.extract import NO_ANSWER
    from foreword.tasks.label_metrics import log_probabilities

    require_same_answers(opened.artefact, task)
    form = opened.artefact.format
    label_N = np.array([-1 if row.label is None else row.label for row in rows])
    if form.decoding is None or form.decoding.conclude is not None:
        return Scored(log_probabilities(opened.scores(rows).double().cpu().numpy()), label_N), {}
    answered = opened.answers(rows)
    samples: dict[str, Any] = {
        "asked": sum(one.asked for one in answered),
        "drawn": sum(one.drawn for one in answered),
        "silent": sum(
            a is NO_ANSWER for a in (judged(task.judge, answered) if task.metric else (o.answer for o in answered))
        ),
        "cut": sum(one.cut for one in answered),
        "majority": majority_curve(form, task, answered, rows),
    }
    if task.metric:
        return TextPredictions.of(task.judge, answered, rows), samples
    return Scored(log_probabilities(vote_scores(form, rows, answered).numpy()), label_N), samples


def _rows(artefact: str, data: str, split: str, which: DataChoice) -> "tuple[list[Row], Task]":
    """Read rows with the artefact's labels, their texts under the names in its template; return them and their task."""
    from foreword.core.artefact import Artefact
    from foreword.tasks.rows import require_answers

    made = Artefact.load(artefact)
    columns = which.text or made.fields
    if len(columns) != len(made.fields):
        raise ConfigError(
            f"The artefact reads {len(made.fields)} texts ({', '.join(made.fields)}); give --text for each."
        )
    which = dataclasses.replace(which, text=columns)
    task = which.read(data, labels=made.format.labels or None)
    splits = ("train", "validation", "test") if split == "all" else (split,)
    results = [row for name in splits for row in task.rows(name)]
    if not results:
        raise DataError(f"{data} has no {split} rows; choose another --split, or --split all for the whole file.")
    require_answers(results, "Label it, or use `foreword predict`.")
    names = dict(zip(columns, made.fields, strict=True))
    renamed = [dataclasses.replace(row, fields={names[c]: row.fields[c] for c in columns}) for row in results]
    return renamed, task
