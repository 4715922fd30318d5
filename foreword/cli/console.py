"""Print for a person: results on stdout, everything else on stderr."""

import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table


def out() -> Console:
    """Return the console of results. It is made anew at each use, since tests and pipes exchange the streams."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=False, emoji=False, markup=False)


def err() -> Console:
    return Console(file=sys.stderr, highlight=False, emoji=False, markup=False)


def note(text: str) -> None:
    """Print one line on stderr."""
    click.echo(text, err=True)


def print_json(value: Any) -> None:
    """Print one line of JSON on stdout, and flush it so that a pipe sees it at once."""
    click.echo(json.dumps(value, ensure_ascii=False))


def show(made: Table) -> None:
    """Print a table. A pipe has no width: there it is as wide as its content, unless COLUMNS says otherwise."""
    console = out()
    if console.is_terminal:
        console.print(made)
        return
    if "COLUMNS" not in os.environ:
        console.width = Console(width=10_000).measure(made).maximum
    with console.capture() as caught:
        console.print(made)
    click.echo("\n".join(line.rstrip() for line in caught.get().splitlines()))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> None:
    """Print a plain table; `numbers` are the columns aligned to the right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        right = i in tuple(numbers)
        made.add_column(column, justify="right" if right else "left", no_wrap=right or i == 0, overflow="fold")
    for row in rows:
        made.add_row(*row)
    show(made)


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one a line, long values wrapped beside their names."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value)
    show(made)


def seconds(value: float) -> str:
    """Return a duration as a person says it: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: int) -> str:
    """Return a number of bytes as a person says it, in B, kB, MB or GB of powers of 1000."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def this_command(*more: str) -> str:
    """Return the command line as it was given, with more options."""
    given = [a for a in sys.argv[1:] if a not in more]
    return shlex.join(["foreword", *given, *more])
