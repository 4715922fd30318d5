"""Print a comparison: one table if it fits the screen, else several of the same lines below each other."""

import dataclasses
import math
import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from foreword.cli.console import out, table

if TYPE_CHECKING:
    from foreword.evaluation.compare import Comparison
    from foreword.evaluation.summary import TableRow

LABELS = ("model", "parameters", "task", "training rows", "method")
FIRST = (
    *("accuracy", "exact match", "F1", "contains", "exact set", "number"),
    *("BLEU", "chrF", "ROUGE-L", "NIST", "slot error rate"),
    *("after - before", "learnt", "vs manual", "verdict"),
    *("vs fine-tuning", "seconds", "numbers", "bytes"),
)
GAP = 2


def print_lines(lines: "Sequence[TableRow]", *, brief: bool = False) -> None:
    """Print table, caption and notes on stdout; `brief` keeps the columns that fit into one table."""
    from foreword.evaluation import report

    click.echo()
    print_blocks(*report.table(lines), most=1 if brief else None)
    for line in [report.caption(lines), *[f"- {n}" for n in report.notes(lines)]]:
        print_filled(line)


def print_blocks(headers: Sequence[str], rows: Sequence[Sequence[str]], most: int | None = None) -> None:
    """Print a table, or `most` tables below each other if one is too wide for the screen."""
    for columns in blocks(headers, rows, _width())[:most]:
        words = [i for i, column in enumerate(columns) if headers[column] in (*LABELS, "chosen", "verdict")]
        table(
            [headers[c] for c in columns],
            [[row[c] for c in columns] for row in rows],
            numbers=set(range(len(columns))) - set(words),
        )
        click.echo()


def print_filled(line: str) -> None:
    """Print a sentence, or an item that begins with a dash, within the width of the screen."""
    width = _width()
    click.echo(textwrap.fill(line, width, subsequent_indent="  " if line[0] == "-" else "") if width else line)


def _width() -> int | None:
    console = out()
    return console.width if console.is_terminal or "COLUMNS" in os.environ else None


def blocks(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[list[int]]:
    """Group columns to fit the width, with the labels of a line in each group; most important columns first."""
    labels = [i for i, name in enumerate(headers) if name in LABELS]
    rest = [i for i, name in enumerate(headers) if name not in LABELS]
    rest.sort(key=lambda i: FIRST.index(headers[i]) if headers[i] in FIRST else len(FIRST))

    def wide(columns: Sequence[int]) -> int:
        each = [max(len(headers[i]), *(len(row[i]) for row in rows)) for i in columns]
        return sum(each) + GAP * (len(each) - 1)

    results: list[list[int]] = []
    for column in rest:
        if results and (width is None or wide([*results[-1], column]) <= width):
            results[-1].append(column)
        else:
            results.append([*labels, column])
    return results


def as_json(found: "Comparison") -> dict[str, Any]:
    """Return the lines of the table and what failed; single runs are in the folder's results.jsonl."""
    return {
        "lines": [_without_nan(dataclasses.asdict(line)) for line in found.lines],
        "failures": [dataclasses.asdict(failure) for failure in found.failures],
        "folder": str(found.folder),
    }


def _without_nan(value: Any) -> Any:
    """Return the value with None for each NaN, since JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
