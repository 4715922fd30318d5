"""Define `foreword import`: an artefact from another library's form."""

from pathlib import Path

import click

from foreword.cli.console import note, pairs, print_json, size
from foreword.cli.lists import json_flag
from foreword.cli.shared_options import FormatChoice, ModelChoice, model_options, placed_format_options
from foreword.cli.show import chat_lines, summary
from foreword.cli.train import hold, refuse_to_replace
from foreword.errors import ConfigError


@click.command("import", short_help="Read a PEFT adapter as an artefact.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", help="A folder, a hub name or an embedded model; default: the adapter's.")
@click.option("--labels", metavar="NAMES", help="Labels in order, with commas; default: those of --label-words.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write the artefact to.")
@click.option("--overwrite", is_flag=True, help="Replace the artefact that --out holds.")
@json_flag
@placed_format_options
@model_options
def import_(
    folder: Path,
    model: str | None,
    labels: str | None,
    out: Path,
    overwrite: bool,
    as_json: bool,
    how_put: FormatChoice,
    how: ModelChoice,
) -> None:
    """Read DIR, a prompt-tuning, p-tuning or prefix-tuning adapter of PEFT, and write it as an artefact.

    PEFT does not record how a row was put to the model: give the --template that it was trained with and the labels'
    words, or --max-new-tokens where the model writes text. A soft prompt goes before [CLS] or BOS, where PEFT has it,
    unless the template has slots.

    \b
    foreword import adapters/x --template '{text} It was {answer}' --label-words good=great --label-words bad=terrible
      --out artefacts/x
    """
    from foreword.core.format import Decoding
    from foreword.interop.peft import foreign, read, scaled
    from foreword.interop.peft_files import Adapter
    from foreword.interop.peft_seq2seq import unread

    hold(out)
    refuse_to_replace(out, overwrite)
    template = how_put.template_source()
    if template is None:
        raise ConfigError("PEFT does not record the template; give the one it was trained with: --template.")
    adapter = Adapter.load(folder)
    name = model or adapter.base_model
    if name is None:
        raise ConfigError(f"{folder} does not name its model; give it with --model.")
    lm = (how.with_kind("causal") if adapter.causal else how).load(name)
    for warning in (foreign(adapter, lm), unread(adapter, lm), scaled(adapter, lm)):
        if warning:
            note(warning)
    asked = how_put.written.said()
    if asked and "max_new_tokens" not in asked:
        raise ConfigError(
            "--stop, --num-beams and --decoding say how a model writes text; give --max-new-tokens too, or leave "
            "them out."
        )
    decoding = Decoding(**asked) if asked else None
    artefact = read(
        adapter, lm, template=template, label_words=how_put.words(), decoding=decoding,
        labels=None if labels is None else [label.strip() for label in labels.split(",")],
        truncate=how_put.truncate, max_length=how_put.max_length, chat_options=how_put.chat(),
    )  # fmt: skip
    artefact.save(out)
    if as_json:
        print_json({"artefact": str(out), **summary(artefact)})
        return
    pairs(
        [
            ("artefact", str(out)),
            ("method", artefact.method),
            ("model", f"{lm.name} ({lm.kind})"),
            ("template", str(artefact.format.template.source)),
            *chat_lines(artefact.format.chat_options),
            ("labels", ", ".join(artefact.format.labels)),
            ("bytes stored", size(artefact.bytes_stored)),
        ]
    )
