"""Write every help page as one Markdown file: python -m foreword.cli.help > docs/help.md."""

from collections.abc import Iterator

import click

from foreword.cli.main import cli

WIDTH = 100


def pages(command: click.Command, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Yield the path and the help text of a command and of all commands below it."""
    width = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    name = command.name if parent else "foreword"
    context = click.Context(command, parent=parent, info_name=name, **{**command.context_settings, **width})
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from pages(child, context)


def markdown() -> str:
    parts = ["# Commands", "", "Made by `python -m foreword.cli.help > docs/help.md`; a test compares the two.", ""]
    for path, text in pages(cli):
        body = "\n".join(line.rstrip() for line in text.splitlines())
        parts += [f"## {path}", "", "```", body, "```", ""]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    click.echo(markdown(), nl=False)
