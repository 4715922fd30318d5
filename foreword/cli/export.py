"""`foreword export`: an artefact in another library's form."""

from pathlib import Path

import click

from foreword.cli.choices import ModelChoice, model_options
from foreword.cli.console import note, pairs, print_json
from foreword.cli.lists import json_flag
from foreword.cli.opened import model_override, open_artefact
from foreword.cli.train import refuse_to_replace
from foreword.errors import ArtefactError


@click.command(short_help="Write an artefact as a PEFT adapter.")
@click.argument("artefact", metavar="ARTEFACT")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["peft"]), default="peft", show_default=True, help="Whose form.")
@click.option("--base-model", metavar="NAME", help="What the adapter calls its model; default: as the artefact does.")
@click.option("--overwrite", is_flag=True, help="Replace the adapter that DIR holds.")
@model_override
@json_flag
@model_options
def export(
    artefact: str,
    folder: Path,
    form: str,
    base_model: str | None,
    overwrite: bool,
    model: str | None,
    as_json: bool,
    how: ModelChoice,
) -> None:
    """Write ARTEFACT, a soft prompt or a prefix, to DIR as PEFT would have saved it.

    PEFT puts a soft prompt before everything: train with --soft-first to export one. The template and the label words,
    for which PEFT has no place, are in the README.md of DIR.

    \b
    foreword export artefacts/x --format peft adapters/x
    """
    from foreword.interop.peft import export as write

    refuse_to_replace(folder, overwrite, "DIR")
    opened = open_artefact(artefact, model, how, False)
    if opened.lm is None:
        raise ArtefactError(f"{artefact} holds word counts, which need no model; PEFT has no form for them.")
    adapter = write(opened.artefact, folder, opened.lm, base_model=base_model)
    if as_json:
        print_json({"adapter": str(folder), "config": adapter.config})
    else:
        pairs(
            [
                ("adapter", str(folder)),
                ("kind", f"{adapter.kind}, {adapter.config['task_type']}"),
                ("base model", str(adapter.base_model)),
                ("positions", f"{len(adapter.prompt_PX):,}"),
            ]
        )
    note(f"PEFT keeps neither the template nor the label words; they are in {folder / 'README.md'}")
