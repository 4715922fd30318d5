"""Define `foreword train`: one method on one task, to an artefact, or on every task of a folder, to a store."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from foreword.cli.console import note, pairs, print_json, seconds, size, this_command
from foreword.cli.lists import json_flag
from foreword.cli.loading import tell_cuts
from foreword.cli.progress import Bars
from foreword.cli.search_summary import search_lines
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
    split_pair,
    with_remote,
)
from foreword.cli.show import summary
from foreword.cli.sources import read_family, read_source
from foreword.cli.store import store_tasks
from foreword.errors import ConfigError, ForewordError

if TYPE_CHECKING:
    from foreword.models.base import FrozenLM
    from foreword.tasks.task import Task
    from foreword.training.contract import Job
    from foreword.training.trainer import Outcome, Trained


@click.command(short_help="Train one method and write what was learnt.")
@click.argument("method")
@click.option("--model", required=True, metavar="MODEL", help="A folder, a hub name or an embedded model.")
@click.option("--data", metavar="SOURCE", help="One task: DIR, FILE, hf:owner/name[:config] or builtin:name.")
@click.option("--tasks", metavar="DIR", help="Many tasks: a folder with a file, or a subfolder, for each.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder of the artefact or the store.")
@click.option("--seed", default=0, show_default=True, help="Seed of everything that is drawn.")
@click.option("--overwrite", is_flag=True, help="Replace the artefact that --out holds.")
@click.option("--resume", is_flag=True, help="Go on where a stopped run of this command was (--tasks always does).")
@click.option("--init", metavar="FOLDER", help="Start from this artefact: what metaprompting learnt, or any prompt.")
@click.option("--classes", metavar="SPLIT", help="Classes kept apart: metaprompter2023, ds2020 or a JSON file.")
@click.option("--stack", type=click.IntRange(min=1), metavar="N", help="With --tasks: tasks trained as one batch.")
@shots_option
@option_pairs
@remote_option
@json_flag
@data_options
@format_options
@model_options
def train(
    method: str,
    model: str,
    data: str | None,
    tasks: str | None,
    out: Path,
    seed: int,
    overwrite: bool,
    resume: bool,
    init: str | None,
    classes: str | None,
    stack: int | None,
    shots: int | None,
    given: tuple[str, ...],
    allow_remote: bool,
    as_json: bool,
    which: DataChoice,
    how_put: FormatChoice,
    how: ModelChoice,
) -> None:
    """Train METHOD on a task and write what was learnt; with --tasks, one artefact for each task of a folder.

    metaprompting learns one start over all tasks of a folder, or over episodes of one with many classes (--classes, or
    the folder's own splits.json keep those of training, validation and test apart); --init trains from it.

    With --tasks all train in mixed batches over one model, tasks whose rows and recipe are unchanged are skipped, and a
    table says which beat their hand-written prompt. `task.json` in a task's folder, or NAME.task.json beside its file,
    may give its template, label_words, text, label, options and labels.

    \b
    foreword train prefix-tuning --model gpt2 --data data/sst2 --out artefacts/x -o length=20 -o learning_rate=5e-3
    foreword train prompt-tuning --model gpt2 --tasks tenants/ --out store/
    foreword train metaprompting --model gpt2 --tasks tasks/ --out starts/x
    foreword train prompt-tuning --model gpt2 --data few.jsonl --init starts/x --out artefacts/y
    """
    from foreword.core.files import remove_whole
    from foreword.inference.predictor import Prompted
    from foreword.methods.registry import find_method, make_job
    from foreword.tasks.episodes import joined
    from foreword.training.options import configure
    from foreword.training.warm_start import with_init

    options = {**method_options(method, with_remote(given, allow_remote)), **({"init": Path(init)} if init else {})}
    result = find_method(method)
    reasoning = how_put.written.reasoning(result.Config, options)
    options |= reasoning
    configure(result, with_init(result, options)[0])  # a mistake in an option is told before a model is loaded
    if classes is not None and not result.episodes:
        raise ConfigError(f"--classes is for metaprompting; {method} trains on rows of all classes.")
    if (data is None) == (tasks is None):
        raise ConfigError("Give either --data SOURCE for one task or --tasks DIR for every task of a folder.")
    if tasks is not None and not result.episodes:
        store_tasks(
            method, model, tasks, out, options, seed=seed, shots=shots, stack=stack, overwrite=overwrite,
            as_json=as_json, which=which, how_put=how_put, how=how,
        )  # fmt: skip
        return
    if stack is not None:
        raise ConfigError("--stack is for --tasks; one task trains as a batch of its own.")
    hold(out)
    checkpoint, stopped = _beside(out, "checkpoint"), _beside(out, "stopped")
    if not resume:  # before any work
        refuse_to_replace(out, overwrite)
    if not resume and not overwrite and checkpoint.exists():
        raise ConfigError(
            f"A stopped run is in {checkpoint}; go on with --resume, or start again with --overwrite, which removes it."
        )
    family: dict[str, Task] = {}
    if tasks is not None:
        family = read_family(tasks, which)
        task = joined(family, Path(tasks).resolve().name)
    else:
        assert data is not None
        task = read_source(data, classes, which) if result.episodes else which.read(data)
    result.require_answers(task)  # before a model is loaded
    if shots and not result.episodes:
        task = task.few_shot(shots, seed)
    elif shots:
        options["shots"] = shots
    lm = how.load(model)
    form = how_put.build(next(iter(family.values()), task), lm, reasons=bool(reasoning))
    job = make_job(lm, task, method, options=options, seed=seed, form=form, family=[*family.values()])
    if resume and _is_done(out, lm, job):
        remove_whole(checkpoint)
        shutil.rmtree(stopped, ignore_errors=True)
        note(f"{out} is finished already; nothing was done")
        return
    refuse_to_replace(out, overwrite)
    trained = _train_to(out, lm, job, checkpoint, stopped, resume)
    prompted = Prompted(lm, trained.artefact)
    if not result.episodes:  # whose rows are put to the model in episodes
        tell_cuts(prompted, task.train)
    searched = trained.artefact.metrics.get("search")
    _tell(trained, out, as_json, search_lines(searched, prompted, task) if searched else [])


def _train_to(out: Path, lm: "FrozenLM", job: "Job", checkpoint: Path, stopped: Path, resume: bool) -> "Trained":
    """Train one job and save its artefact; after Ctrl-C the best artefact so far goes to `stopped`."""
    from foreword.training.trainer import TrainingInterrupted, train_many

    def save(_: int, made: "Outcome") -> None:  # before the checkpoint goes: a full disk must not lose the run
        if not isinstance(made, ForewordError):
            made.artefact.save(out)

    try:
        with Bars() as bars:
            (outcome,) = train_many(lm, [job], progress=bars, on_done=save, checkpoint=checkpoint, resume=resume)
    except TrainingInterrupted as stop:
        _keep(stop.trained[0], stopped)
        raise
    if isinstance(outcome, ForewordError):
        raise outcome
    shutil.rmtree(stopped, ignore_errors=True)
    return outcome


def _tell(trained: "Trained", out: Path, as_json: bool, more: list[tuple[str, str]]) -> None:
    artefact = trained.artefact
    reached = artefact.metrics.get("episodes", {})
    if as_json:
        told = {"searched": dict(more)} if more else {}
        print_json({"artefact": str(out), "seconds": round(trained.seconds, 3), **told, **summary(artefact)})
        return
    validation = artefact.metrics.get("validation", {})
    pairs(
        [
            ("artefact", str(out)),
            ("text in", ", ".join(artefact.fields)),
            *more,
            *[
                (f"validation {k}".replace("_", " "), "not measured" if v is None else f"{v:.4g}")
                for k, v in validation.items()
            ],
            *[(f"adapted episodes, {k}", f"{v:.4g}") for k, v in reached.items()],
            ("numbers trained", f"{artefact.numbers_trained:,}"),
            ("bytes stored", size(artefact.bytes_stored)),
            ("trained in", seconds(trained.seconds)),
        ]
    )


def method_options(method: str, given: tuple[str, ...]) -> dict[str, str]:
    """Return the values of `-o key=value` and `-o method.key=value` for one method."""
    options = {}
    for text in given:
        key, value = split_pair(text)
        owner, dot, name = key.rpartition(".")
        if dot and owner != method:
            raise ConfigError(f"-o {text!r} is for {owner!r}, but the method is {method!r}; write -o {name}={value}.")
        options[name] = value
    return options


def refuse_to_replace(out: Path, overwrite: bool, said: str = "--out") -> None:
    """Refuse to write to a file, or to a folder with content unless `overwrite`. Raises: ConfigError."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{said} {out} is a file; name a folder that is not there yet.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"{said} {out} exists already; name another folder, or pass --overwrite to replace it.")


def hold(out: Path, said: str = "--out") -> None:
    """Lock what this command writes for other processes until it ends. Raises: ConfigError that names the holder."""
    from foreword.core.locks import held

    click.get_current_context().with_resource(held(out, said))


def _is_done(out: Path, lm: "FrozenLM", job: "Job") -> bool:
    """Return whether the folder holds what this job makes: the same recipe, rows and model."""
    from foreword.core.artefact import Artefact
    from foreword.training.recipe import is_of

    return (out / "foreword.json").exists() and is_of(Artefact.load(out), lm, job)


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f"{out.name}.{what}")


def _keep(trained: "Trained | None", stopped: Path) -> None:
    """Save the best artefact so far after Ctrl-C, if there is one, and say how to go on."""
    if trained is not None:
        trained.artefact.save(stopped)
        note(f"stopped at step {trained.artefact.metrics['steps']}; the best so far is in {stopped}")
    note(f"go on with: {this_command('--resume')}")
