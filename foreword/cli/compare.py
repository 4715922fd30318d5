"""Define `foreword compare`: several methods on the same rows and seeds, and one table."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from foreword.cli.console import note, print_json, this_command
from foreword.cli.lists import json_flag
from foreword.cli.progress import Bars
from foreword.cli.results import as_json as comparison_as_json
from foreword.cli.results import print_lines
from foreword.cli.shared_options import (
    DataChoice,
    FormatChoice,
    ModelChoice,
    data_options,
    format_options,
    model_options,
    option_pairs,
    remote_option,
    shots_option,
    with_remote,
)
from foreword.errors import ConfigError, ForewordError

if TYPE_CHECKING:
    from foreword.evaluation.compare import CompareOptions, Comparison
    from foreword.tasks.task import Task


@click.command(short_help="Train methods on the same rows and seeds; one table.")
@click.option(
    "--model",
    "models",
    required=True,
    multiple=True,
    metavar="MODEL",
    help="A folder, a hub name or an embedded model; repeat to compare models too.",
)
@click.option("--data", required=True, metavar="SOURCE", help="DIR, FILE, hf:owner/name[:config] or builtin:name.")
@click.option("--methods", required=True, metavar="NAMES", help="Methods, with commas between them.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The folder of results; goes on if stopped."
)
@click.option("--seeds", default="5", show_default=True, metavar="N", help="How many seeds, or the seeds: 0,3,7.")
@click.option(
    "--allowed", type=click.IntRange(min=1), metavar="N", help="Grid points a method; default: the largest grid."
)
@click.option("--stack", type=click.IntRange(min=1), metavar="N", help="Runs trained as one batch; default: all.")
@click.option("--resume", is_flag=True, help="Accepted for the habit: a comparison always goes on where it was.")
@click.option(
    "--sensitivity/--no-sensitivity",
    default=True,
    show_default=True,
    help="Measure methods that are words in ten other templates too: ten more evaluations each.",
)
@click.option(
    "--subsets",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --shots: N draws of training rows, and every seed on each; default: a draw for each seed.",
)
@click.option("--no-test", is_flag=True, help="Stop at the development rows, for tuning.")
@shots_option
@option_pairs
@remote_option
@json_flag
@data_options
@format_options
@model_options
def compare(
    models: tuple[str, ...],
    data: str,
    methods: str,
    out: Path,
    seeds: str,
    allowed: int | None,
    stack: int | None,
    resume: bool,
    sensitivity: bool,
    subsets: int | None,
    no_test: bool,
    shots: int | None,
    given: tuple[str, ...],
    allow_remote: bool,
    as_json: bool,
    which: DataChoice,
    how_put: FormatChoice,
    how: ModelChoice,
) -> None:
    """Train methods on the same rows and seeds, and print one table with 95% intervals.

    `-o method.key=v1,v2` is a grid for that method, chosen on development rows. Finished runs are kept in --out: the
    same command goes on where it was stopped.

    \b
    foreword compare --model gpt2 --data data/sst2 --methods manual,prompt-tuning,fine-tuning --seeds 5 --out runs/x
    foreword compare --model gpt2 --data data/e2e --methods prefix-tuning,fine-tuning --shots 50 --subsets 5 --seeds 2 \
        --out runs/low
    """
    from foreword.evaluation.compare import CompareOptions
    from foreword.evaluation.grid import parse_options
    from foreword.methods.registry import find_method

    names = [name.strip() for name in methods.split(",") if name.strip()]
    chosen_methods = [find_method(name) for name in names]
    options = parse_options(with_remote(given, allow_remote), chosen_methods)
    reasoning = {m.name: how_put.written.reasoning(m.Config, options[m.name]) for m in chosen_methods}
    options = {name: {**own, **reasoning.get(name, {})} for name, own in options.items()}
    numbers = parse_seeds(seeds)
    if subsets is not None and shots is None:
        raise ConfigError("--subsets are draws of so many training rows as --shots says; give --shots K too.")
    task = which.read(data)
    loaders = [functools.partial(how.load, model) for model in models]
    asked = sensitivity and not no_test
    chosen = CompareOptions(
        allowed=allowed,
        test=not no_test,
        stack=stack,
        form=lambda lm, t: how_put.build(t, lm, reasons=any(reasoning.values())),
        sensitivity=asked,
    )
    hard = [name for name in names if find_method(name).retemplates]
    if asked and hard:
        note(
            f"{', '.join(hard)}: measured in ten other templates too, which takes ten times the test rows "
            "(--no-sensitivity leaves it out)"
        )
    found = run(loaders, task, names, out=out, seeds=numbers, shots=shots, subsets=subsets, options=options, how=chosen)
    report(found, out, as_json)


def run(loaders: list, task: "Task", names: list[str], *, out: Path, how: "CompareOptions", **more) -> "Comparison":
    """Run `evaluation.compare` with progress bars; after Ctrl-C say how to go on."""
    from foreword.evaluation.compare import compare as compare_methods

    try:
        with Bars() as bars:
            return compare_methods(loaders, task, names, out=out, how=how, progress=bars, on_stage=bars.stage, **more)
    except KeyboardInterrupt:
        note(f"the runs that ended are in {out}")
        note(f"go on with: {this_command()}")
        raise


def report(found: "Comparison", out: Path, as_json: bool, *, brief: bool = False) -> None:
    """Print the table and each run that failed. Raises: ForewordError (exit code 2) if a run failed."""
    if as_json:
        print_json(comparison_as_json(found))
    elif found.lines:
        print_lines(found.lines, brief=brief)
        note(f"Runs, predictions and artefacts: {out}")
    for failure in found.failures:
        note(f"failed: {failure.model}, {failure.method}, seed {failure.seed}: {failure.reason}")
    if found.failures:
        raise ForewordError(f"{len(found.failures)} runs failed, as said above; the same command tries them again.")


def parse_seeds(text: str) -> int | list[int]:
    """Return the number of seeds, or the seeds themselves if they are separated by commas."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--seeds {text!r} is not a number; write --seeds 5, or the seeds themselves: 0,3,7."
        ) from None
    if "," in text:
        return numbers
    if numbers[0] < 1:
        raise ConfigError(f"--seeds {text} is too few; give 1 or more.")
    return numbers[0]
