"""Define `foreword demo`: five methods on an embedded task, with the embedded model, in minutes."""

import functools
from pathlib import Path

import click

from foreword.cli.compare import report, run
from foreword.cli.console import note
from foreword.cli.lists import json_flag
from foreword.cli.shared_options import ModelChoice, model_options

METHODS = ("manual", "bag-of-words", "prompt-tuning", "prefix-tuning", "fine-tuning")
# Chosen on development rows so that two cores need less than five minutes for all.
OPTIONS = {
    "prompt-tuning": {"length": 10, "steps": 120, "eval_every": 40},
    "prefix-tuning": {"length": 10, "steps": 120, "eval_every": 40},
    "fine-tuning": {"steps": 80, "eval_every": 40},
}
TRAIN_ROWS, TEST_ROWS, SEEDS = 1000, 500, 1


@click.command(short_help="Compare five methods on a synthetic task, in minutes.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="demo", show_default=True, help="The folder of results."
)
@click.option(
    "--task", type=click.Choice(["sentiment", "intents"]), default="sentiment", show_default=True, help="What to learn."
)
@click.option("--model", default="foreword-mini", show_default=True, metavar="MODEL", help="Another model to use.")
@json_flag
@model_options
def demo(out: Path, task: str, model: str, as_json: bool, how: ModelChoice) -> None:
    """Compare five methods on a small synthetic task with the embedded model; nothing is downloaded.

    Takes a few minutes on two cores and leaves results.jsonl and the learnt artefacts in --out. A second run only
    prints the table.
    """
    from foreword.evaluation.compare import CompareOptions
    from foreword.tasks.read import read_task

    rows = read_task(f"builtin:{task}").limit(train=TRAIN_ROWS, test=TEST_ROWS)
    note(f"{rows.describe()}. A generator wrote the text, so the numbers say nothing about real data.")
    result = run(
        [functools.partial(how.load, model)],
        rows,
        list(METHODS),
        out=out,
        how=CompareOptions(),
        seeds=SEEDS,
        options=OPTIONS,
    )
    report(result, out, as_json, brief=True)
    learnt = next((r.artefact for r in result.records if r.method == "prompt-tuning" and r.artefact), None)
    if learnt:
        note(f'Try what was learnt: foreword predict {out / learnt} "a text of your own"')
