"""`foreword keys`: who may use which prompts of a server."""

import click

from foreword.cli.console import note, print_json, table
from foreword.cli.lists import json_flag


@click.group(short_help="Add, list and remove the keys of a server.")
def keys() -> None:
    """Keys for `foreword serve DIR`. Without any, the server answers to this machine's own programs alone.

    A key names the prompts that it may use (--infer) and those that it may add, change and remove (--administer), as
    patterns: 'acme-*', or '*' for all. The two are apart. What is stored of a key is a hash.
    """


@keys.command(short_help="Make a key and show it, once.")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@click.option("--infer", multiple=True, metavar="PATTERN", help="Names it may use; repeat for several.")
@click.option("--administer", multiple=True, metavar="PATTERN", help="Names it may change; repeat for several.")
@click.option("--note", "words", default="", metavar="TEXT", help="What the key is for.")
@json_flag
def add(folder: str, infer: tuple[str, ...], administer: tuple[str, ...], words: str, as_json: bool) -> None:
    """Make a key for the server of DIR. It is shown now and never again; a running server knows it at once.

    \b
    foreword keys add store/ --infer 'acme-*' --administer 'acme-*' --note "team acme"
    """
    from foreword.serving.keys import KeyRing

    ring = KeyRing.open(folder)
    token = ring.add(infer, administer, words)
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

    found = KeyRing.open(folder).list()
    if as_json:
        for key in found:
            print_json(vars(key))
        return
    table(
        ["id", "infer", "administer", "made", "note"],
        [(key.id, " ".join(key.infer), " ".join(key.administer), key.created, key.note) for key in found],
    )


@keys.command(short_help="Remove a key; it is refused at once.")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.argument("name", metavar="ID")
def remove(folder: str, name: str) -> None:
    """Remove the key with this ID (`foreword keys list`)."""
    from foreword.serving.keys import KeyRing

    KeyRing.open(folder).remove(name)
    note(f"{name} is removed.")
