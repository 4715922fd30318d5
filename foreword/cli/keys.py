"""Define `foreword keys`: the keys of a server, and the prompts that each may use."""

from typing import TYPE_CHECKING

import click

from foreword.cli.console import note, print_json, table
from foreword.cli.lists import json_flag

if TYPE_CHECKING:
    from foreword.serving.quota import Quota


@click.group(short_help="Add, list and remove the keys of a server.")
def keys() -> None:
    """Manage the keys for `foreword serve DIR`; without any, the server answers only programs on this machine.

    A key names the prompts that it may use (--infer) and those that it may add, change and remove (--administer), as
    patterns: 'acme-*', or '*' for all. The two are apart. What is stored of a key is a hash.
    """


@keys.command(short_help="Make a key and show it, once.")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@click.option("--infer", multiple=True, metavar="PATTERN", help="Names it may use; repeat for several.")
@click.option("--administer", multiple=True, metavar="PATTERN", help="Names it may change; repeat for several.")
@click.option("--note", "words", default="", metavar="TEXT", help="What the key is for.")
@click.option("--limit", multiple=True, metavar="NAME=N", help="See `foreword keys limit`; repeat for several.")
@json_flag
def add(
    folder: str, infer: tuple[str, ...], administer: tuple[str, ...], words: str, limit: tuple[str, ...], as_json: bool
) -> None:
    """Make a key for the server of DIR. It is shown now and never again; a running server knows it at once.

    \b
    foreword keys add store/ --infer 'acme-*' --administer 'acme-*' --note "team acme"
    """
    from foreword.serving.keys import KeyRing

    ring = KeyRing.open(folder)
    token = ring.add(infer, administer, words, limit)
    if as_json:
        print_json({"key": token})
    else:
        click.echo(token)
        note(f"Keep it: only its hash is stored, in {ring.file}.")


@keys.command("list", short_help="List the keys, by their ids.")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@json_flag
def list_(folder: str, as_json: bool) -> None:
    """List the keys of the server of DIR: their ids and what they may do."""
    from foreword.serving.keys import KeyRing

    result = KeyRing.open(folder).list()
    if as_json:
        for key in result:
            shown = {name: value for name, value in vars(key).items() if name != "quota"}
            print_json({**shown, "limits": key.quota.as_dict()})
        return
    table(
        ["id", "infer", "administer", "limits", "made", "note"],
        [
            (key.id, *map(" ".join, (key.infer, key.administer, _limits(key.quota))), key.created, key.note)
            for key in result
        ],
    )


def _limits(quota: "Quota") -> list[str]:
    return [f"{name}={value}" for name, value in quota.as_dict().items()]


@keys.command(short_help="Limit what a key may have.")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.argument("name", metavar="ID")
@click.argument("limits", metavar="NAME=N...", nargs=-1, required=True)
def limit(folder: str, name: str, limits: tuple[str, ...]) -> None:
    """Limit what the key with this ID may have; a running server knows it at once. NAME=none is no limit of its own.

    At once: requests under way, rows that wait for the model, uploads. Stored: prompts, versions and bytes that the key
    added. A key without a limit shares what there is with the others, and none keeps another out.

    \b
    foreword keys limit store/ 0123456789abcdef rows=500 prompts=1000 bytes=2GB
    """
    from foreword.serving.keys import KeyRing

    quota = KeyRing.open(folder).limit(name, limits)
    note(f"{name} has the limits {' '.join(_limits(quota)) or 'of all keys'}.")


@keys.command(short_help="Remove a key; it is refused at once.")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.argument("name", metavar="ID")
def remove(folder: str, name: str) -> None:
    """Remove the key with this ID (`foreword keys list`)."""
    from foreword.serving.keys import KeyRing

    KeyRing.open(folder).remove(name)
    note(f"{name} is removed.")
