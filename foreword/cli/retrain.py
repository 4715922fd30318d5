"""Define `foreword retrain`: every artefact of a store again, for another model."""

from pathlib import Path

import click

from foreword.cli.console import note
from foreword.cli.lists import json_flag
from foreword.cli.progress import Bars
from foreword.cli.shared_options import DataChoice, ModelChoice, data_options, model_options
from foreword.cli.store import read_tasks, resumable, tell


@click.command(short_help="Make artefacts again for another model; compare.")
@click.argument("store", metavar="STORE")
@click.option("--model", required=True, metavar="MODEL", help="The new model: a folder, a hub name or an embedded one.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder of the new store.")
@click.option("--tasks", metavar="DIR", help="Read the rows from here, by the artefact's name; default: as recorded.")
@click.option("--allow-changed-data", is_flag=True, help="Train on rows that are not those of the old artefact.")
@click.option("--resume", is_flag=True, help="Accepted for the habit: the same command always goes on where it was.")
@click.option("--stack", type=click.IntRange(min=1), metavar="N", help="Artefacts trained as one batch.")
@json_flag
@data_options
@model_options
def retrain(
    store: str,
    model: str,
    out: Path,
    tasks: str | None,
    allow_changed_data: bool,
    resume: bool,
    stack: int | None,
    as_json: bool,
    which: DataChoice,
    how: ModelChoice,
) -> None:
    """Make every artefact of STORE again for MODEL, from its recorded recipe and rows, and compare before and after.

    STORE is what `foreword train --tasks` or `foreword compare` wrote, a folder of artefacts, or one artefact. Rows
    that changed since are refused. Column options are for --tasks.

    \b
    foreword retrain store/ --model gpt2-medium --out store-medium/
    """
    from foreword.evaluation.retrain import retrain as make_again
    from foreword.evaluation.tasks import STACK

    given = None if tasks is None else read_tasks(tasks, which)
    lm = how.load(model)
    with resumable(out), Bars(many=True) as bars:
        report = make_again(
            store,
            lm,
            out=out,
            load=lambda name, kind: how.of_another(kind).load(name),
            tasks=given,
            allow_changed_data=allow_changed_data,
            stack=stack or STACK,
            progress=bars,
            on_stage=bars.stage,
        )
    for text in report.notes:
        note(text)
    tell(report, out, as_json)
