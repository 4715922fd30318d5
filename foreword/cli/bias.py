"""Define `foreword bias`: what a model says because of how its demonstrations stand, before and after calibration."""

import click

from foreword.cli.console import note, print_json, table
from foreword.cli.lists import json_flag
from foreword.cli.shared_options import (
    DataChoice,
    FormatChoice,
    ModelChoice,
    data_options,
    format_options,
    model_options,
)


@click.command(short_help="What a model says because of its demonstrations.")
@click.option("--model", required=True, metavar="MODEL", help="A folder, a hub name or an embedded model.")
@click.option("--data", required=True, metavar="SOURCE", help="DIR, FILE, hf:owner/name[:config] or builtin:name.")
@click.option("--demos", type=click.IntRange(min=1), default=4, show_default=True, help="Demonstrations in a prompt.")
@click.option("--draws", type=click.IntRange(min=1), default=4, show_default=True, help="Sets of demonstrations.")
@click.option("--orders", type=click.IntRange(min=1), default=4, show_default=True, help="Orders of each set.")
@click.option("--rows", type=click.IntRange(min=1), default=64, show_default=True, help="Development rows to read.")
@click.option("--seed", default=0, show_default=True, help="Seed of the draws and orders.")
@json_flag
@data_options
@format_options
@model_options
def bias(
    model: str,
    data: str,
    demos: int,
    draws: int,
    orders: int,
    rows: int,
    seed: int,
    as_json: bool,
    which: DataChoice,
    how_put: FormatChoice,
    how: ModelChoice,
) -> None:
    """Measure biases towards labels of most and of last demonstrations, and towards common label words.

    \b
    foreword bias --model gpt2 --data data/sst2 --demos 4
    """
    from foreword.evaluation.bias import bias_report

    task = which.read(data)
    lm = how.load(model)
    result = bias_report(
        lm, task, demos=demos, draws=draws, permutations=orders, rows=rows, seed=seed, form=how_put.build(task, lm)
    )
    if as_json:
        print_json(result.to_json())
        return
    columns = zip(
        result.labels, result.words, result.true, result.prior, result.before.said, result.after.said, strict=True
    )
    table(
        ["label", "word", "true share", "without any text", "said", "said, calibrated"],
        [(label, word, *(f"{100 * share:.1f}" for share in shares)) for label, word, *shares in columns],
        numbers=(2, 3, 4, 5),
    )
    click.echo()
    table(
        ["said more often, in points", "as it is", "calibrated"],
        [
            ("the label of most demonstrations", _points(result.before.majority), _points(result.after.majority)),
            ("the label of the last one", _points(result.before.recency), _points(result.after.recency)),
        ],
        numbers=(1, 2),
    )
    note(f"{result.rows} development rows after {result.prompts} prompts of {result.shown} demonstrations")


def _points(share: float | None) -> str:
    return "no prompt has one" if share is None else f"{100 * share:+.1f}"
