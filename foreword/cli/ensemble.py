"""Define `foreword ensemble`: several artefacts as one that answers for all of them."""

from pathlib import Path

import click

from foreword.cli.console import pairs, print_json, size
from foreword.cli.lists import json_flag
from foreword.cli.show import summary
from foreword.cli.train import hold, refuse_to_replace
from foreword.errors import ConfigError


@click.command(short_help="Several artefacts as one that answers for all.")
@click.argument("artefacts", nargs=-1, required=True, metavar="ARTEFACT ARTEFACT...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder of the ensemble.")
@click.option(
    "--rule",
    type=click.Choice(["mean", "majority"]),
    default="mean",
    show_default=True,
    help="The mean of probabilities, or the label of most; means decide between ties.",
)
@click.option("--overwrite", is_flag=True, help="Replace the artefact that --out holds.")
@json_flag
def ensemble(artefacts: tuple[str, ...], out: Path, rule: str, overwrite: bool, as_json: bool) -> None:
    """Join ARTEFACTs over the same labels and model: of other templates, demonstrations or seeds. Nothing is trained.

    Their rows share batches, so five prompts cost about as much as five times the text.

    \b
    foreword ensemble artefacts/seed-0 artefacts/seed-1 artefacts/seed-2 --out artefacts/together
    """
    from foreword.core.artefact import Artefact
    from foreword.inference.ensemble import ensemble as joined

    hold(out)
    refuse_to_replace(out, overwrite)
    if len(set(artefacts)) < len(artefacts):
        raise ConfigError("An artefact was named twice; each member is named once.")
    made = joined({name: Artefact.load(name) for name in artefacts}, "majority" if rule == "majority" else "mean")
    made.save(out)
    if as_json:
        print_json({"artefact": str(out), **summary(made)})
        return
    members = ", ".join(made.metrics["members"])
    pairs([("artefact", str(out)), ("members", members), ("rule", rule), ("bytes stored", size(made.bytes_stored))])
