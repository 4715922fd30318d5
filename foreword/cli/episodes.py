"""Define `foreword episodes`: starts and controls on the same few-shot episodes, and one table."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from foreword.cli.console import note, print_json, this_command
from foreword.cli.lists import json_flag
from foreword.cli.results import print_blocks, print_filled
from foreword.cli.shared_options import (
    DataChoice,
    FormatChoice,
    ModelChoice,
    data_options,
    format_options,
    model_options,
)
from foreword.cli.sources import read_family, read_source
from foreword.errors import ConfigError

if TYPE_CHECKING:
    from foreword.core.artefact import Artefact
    from foreword.evaluation.episode_report import EpisodeLine
    from foreword.tasks.task import Task

KINDS = ("zero-step", "adapted", "prototypes", "fine-tuning")


@click.command(short_help="Compare starts on the same few-shot episodes; one table.")
@click.option("--model", required=True, metavar="MODEL", help="A folder, a hub name or an embedded model.")
@click.option("--data", metavar="SOURCE", help="One task: DIR, FILE, hf:owner/name[:config] or builtin:name.")
@click.option("--tasks", metavar="DIR", help="Episodes of every task of a folder.")
@click.option("--classes", metavar="SPLIT", help="Classes kept apart: metaprompter2023, ds2020 or a JSON file.")
@click.option(
    "--start", "starts", multiple=True, metavar="NAME=FOLDER", help="A start; one name again is another training seed."
)
@click.option("--arms", default=",".join(KINDS), show_default=True, metavar="NAMES", help="What is measured.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The folder of results; goes on if stopped."
)
@click.option("--ways", type=click.IntRange(min=2), default=5, show_default=True, help="Classes of an episode.")
@click.option("--shots", type=click.IntRange(min=1), default=1, show_default=True, help="Support rows of each class.")
@click.option("--queries", type=click.IntRange(min=1), default=15, show_default=True, help="Query rows of each class.")
@click.option("--episodes", "count", type=click.IntRange(min=2), default=200, show_default=True, help="Test episodes.")
@click.option(
    "--validation-episodes", type=click.IntRange(min=0), default=50, show_default=True, help="To choose rates on."
)
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Steps of adaptation.")
@click.option("--rates", default="0.03,0.1,0.3,1", show_default=True, help="Rates of adaptation, one chosen an arm.")
@click.option("--fine-tuning-rates", default="1e-5,3e-5,1e-4", show_default=True, help="Those of fine-tuning.")
@click.option("--seed", default=0, show_default=True, help="Seed of the episodes.")
@click.option("--transductive", is_flag=True, help="Prototypes may see all query rows at once; marked in the table.")
@json_flag
@data_options
@format_options
@model_options
def episodes(
    model: str,
    data: str | None,
    tasks: str | None,
    classes: str | None,
    starts: tuple[str, ...],
    arms: str,
    out: Path,
    ways: int,
    shots: int,
    queries: int,
    count: int,
    validation_episodes: int,
    steps: int,
    rates: str,
    fine_tuning_rates: str,
    seed: int,
    transductive: bool,
    as_json: bool,
    which: DataChoice,
    how_put: FormatChoice,
    how: ModelChoice,
) -> None:
    """Measure starts on the same few-shot test episodes, before and after adaptation, with controls.

    Every arm's rate is chosen on validation episodes. Differences are paired with the starts named `multitask` and
    `vocabulary`, where they are given. Finished arms are kept in --out: the same command goes on where it was stopped.

    \b
    foreword episodes --model MODEL --data data/reuters --start maml=starts/x --start multitask=starts/y --out runs/e
    """
    from foreword.evaluation.episode_comparison import Protocol, arms_of, measure_arms
    from foreword.evaluation.episode_report import lines_of, over
    from foreword.tasks.episodes import EpisodeSource

    kinds = [name.strip() for name in arms.split(",") if name.strip()]
    unknown = [name for name in kinds if name not in KINDS]
    if unknown or not kinds:
        raise ConfigError(f"--arms has {', '.join(unknown) or 'no arm'}; name some of {', '.join(KINDS)}.")
    if (data is None) == (tasks is None):
        raise ConfigError("Give either --data SOURCE for one task or --tasks DIR for every task of a folder.")
    result = read_starts(starts)
    protocol = Protocol(
        episodes=count, validation=validation_episodes, steps=steps, rates=numbers("--rates", rates),
        fine_tuning_rates=numbers("--fine-tuning-rates", fine_tuning_rates), seed=seed, transductive=transductive,
    )  # fmt: skip
    of: list[Task] = [*read_family(tasks, which).values()] if tasks else [read_source(data or "", classes, which)]
    source = EpisodeSource(tuple(of), ways, shots, queries)
    lm = how.load(model)
    forms = [how_put.build(task, lm) for task in of]
    try:
        measured = measure_arms(
            lm, source, forms, arms_of(result, [k for k in KINDS if k in kinds]), protocol, out=out, tell=note
        )
    except KeyboardInterrupt:
        note(f"go on with: {this_command()}")
        raise
    lines = lines_of(measured, over(source, protocol.split))
    if as_json:
        from foreword.evaluation.episode_report import as_record

        print_json({"episodes": count, "hash": measured[0].hash, "arms": [as_record(line) for line in lines]})
        return
    print_lines(lines, count, over(source, protocol.split), transductive)


def read_starts(given: tuple[str, ...]) -> "dict[str, list[Artefact]]":
    """Load the artefacts of NAME=FOLDER pairs, by name; a name may come several times, once for each training seed."""
    from foreword.core.artefact import Artefact

    results: dict[str, list[Artefact]] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder:
            raise ConfigError(f"--start {text!r} is not NAME=FOLDER; write --start maml=starts/x.")
        results.setdefault(name, []).append(Artefact.load(folder))
    return results


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Read numbers above 0 that are separated by commas."""
    try:
        result = tuple(float(part) for part in text.split(","))
    except ValueError:
        result = ()
    if not result or not all(0 < value < 1e30 for value in result):
        raise ConfigError(f"{option} {text!r} is not a list of numbers above 0; write 0.1,0.3.")
    return result


def print_lines(lines: "list[EpisodeLine]", count: int, what: str, transductive: bool) -> None:
    from foreword.evaluation.episode_report import REFERENCES, percent, points

    references = [r for r in REFERENCES if any(r in line.versus for line in lines)]
    rows = []
    for line in lines:
        marked = " (transductive)" if transductive and line.how == "prototypes" else ""
        cells = [line.name + marked, str(line.accuracy.seeds), ", ".join(f"{r:g}" for r in line.rates)]
        cells.append(percent(line.accuracy))
        for reference in references:
            known = reference in line.versus
            cells += [points(line.versus[reference]), str(line.verdict(reference))] if known else ["", ""]
        rows.append(cells)
    heads = [text for r in references for text in (f"- {r}", f"than {r}")]
    print_blocks(["method", "seeds", "rate", "accuracy", *heads], rows)
    print_filled(f"Mean query accuracy in percent over {count} test episodes; 95% intervals over {what} and seeds.")
