"""Define `foreword export`: an artefact in another program's form."""

from pathlib import Path
from typing import Any

import click

from foreword.cli.console import note, pairs, print_json
from foreword.cli.lists import json_flag
from foreword.cli.loading import model_override, open_artefact
from foreword.cli.shared_options import ModelChoice, model_options
from foreword.cli.train import hold, refuse_to_replace
from foreword.errors import ArtefactError

Told = tuple[dict[str, Any], list[tuple[str, str]], str]  # what was made: for programs, for people, and a last line


@click.command(short_help="Write an artefact as a PEFT adapter, for vLLM, or as text.")
@click.argument("artefact", metavar="ARTEFACT")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "--format",
    "form",
    type=click.Choice(["peft", "vllm", "text"]),
    default="peft",
    show_default=True,
    help="Whose form; --to and --format are the same.",
)
@click.option("--base-model", metavar="NAME", help="What the export calls its model; default: as the artefact does.")
@click.option("--overwrite", is_flag=True, help="Replace the export that DIR holds.")
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
    """Write ARTEFACT to DIR for another program.

    peft, for soft prompts and prefixes: the folder that PEFT would have saved. It puts a soft prompt before everything:
    train with --soft-first to export one. The template and the label words, for which PEFT has no place, are in the
    README.md of DIR.

    vllm, for prompts of vectors or words over a causal model: the vectors as vLLM's prompt_embeds takes them, how a row
    is laid out around them, and a client that asks the server and reads the labels. The server needs
    --enable-prompt-embeds. Prefixes have no way into vLLM.

    text, for prompts of words: the template, the label words and an example, as text and as JSON.

    \b
    foreword export artefacts/x --to peft adapters/x
    foreword export artefacts/x --to vllm served/x
    foreword export artefacts/words --to text prompts/words
    """
    hold(folder, "DIR")
    refuse_to_replace(folder, overwrite, "DIR")
    write = {"peft": _peft, "vllm": _vllm, "text": _text}[form]
    record, rows, last = write(artefact, folder, base_model, model, how)
    if as_json:
        print_json(record)
    else:
        pairs(rows)
    note(last)


def _peft(artefact: str, folder: Path, base_model: str | None, model: str | None, how: ModelChoice) -> Told:
    from foreword.interop.peft import export as write

    opened = open_artefact(artefact, model, how, False)
    if opened.lm is None:
        raise ArtefactError(f"{artefact} holds word counts, which need no model; PEFT has no form for them.")
    adapter = write(opened.artefact, folder, opened.lm, base_model=base_model)
    rows = [
        ("adapter", str(folder)),
        ("kind", f"{adapter.kind}, {adapter.config['task_type']}"),
        ("base model", str(adapter.base_model)),
        ("positions", f"{len(adapter.prompt_PX):,}"),
    ]
    last = f"PEFT keeps neither the template nor the label words; they are in {folder / 'README.md'}"
    return {"adapter": str(folder), "config": adapter.config}, rows, last


def _vllm(artefact: str, folder: Path, base_model: str | None, model: str | None, how: ModelChoice) -> Told:
    from foreword.interop.vllm import export as write

    opened = open_artefact(artefact, model, how, False)
    if opened.lm is None:
        raise ArtefactError(f"{artefact} holds word counts, which need no model; vLLM has no use for them.")
    prompt_PD = write(opened.artefact, folder, opened.lm, base_model=base_model)
    name, shape = base_model or opened.lm.name, list(prompt_PD.shape)
    dtype = str(prompt_PD.dtype).removeprefix("torch.")
    record = {"folder": str(folder), "base_model": name, "shape": shape, "dtype": dtype}
    rows = [
        ("folder", str(folder)),
        ("base model", name),
        ("prompt", f"{shape[0]:,} positions of {shape[1]:,} numbers, {dtype}"),
        ("server", f"vllm serve {name} --enable-prompt-embeds"),
        ("client", f'python {folder / "client.py"} "a text"'),
    ]
    return record, rows, f"what the server needs, and the limits, are in {folder / 'README.md'}"


def _text(artefact: str, folder: Path, base_model: str | None, model: str | None, how: ModelChoice) -> Told:
    from foreword.core.artefact import Artefact
    from foreword.interop.plain_text import export as write

    held = Artefact.load(artefact)
    lm = None
    if held.form == "hard" and not held.any_model:  # token ids, which a tokenizer writes out
        opened = open_artefact(artefact, model, how, False)
        held, lm = opened.artefact, opened.lm
    words = write(held, folder, lm)
    record = {"folder": str(folder), "template": words.source, "label_words": words.labels, "example": words.example}
    rows = [("folder", str(folder)), ("template", str(words.source)), ("example", str(words.example))]
    return record, rows, f"the same with the label words is in {folder / 'prompt.txt'} and {folder / 'prompt.json'}"
