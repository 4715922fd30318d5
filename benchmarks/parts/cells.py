"""A benchmark is a list of cells: options that all have, and the loop that measures those without a result yet."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]


def options(
    name: str, doc: str, quick: str, rows: str, document: str, out: str = "runs/bench"
) -> argparse.ArgumentParser:
    """The options of every benchmark; `quick` says what --quick takes, `rows` are the sentences measured with, and
    `document` is the file in benchmarks/ that tells the results."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc.split("\n")[0])
    parser.add_argument("--only", default="", help="names of cells, with commas between them")
    parser.add_argument("--list", action="store_true", help="name the cells and stop")
    parser.add_argument("--again", action="store_true", help="measure cells anew that have a result")
    parser.add_argument("--quick", action="store_true", help=f"{quick}: whether it works, not how fast")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch (0: as the environment says)")
    parser.add_argument("--rows", default=rows, help="rows to measure with; made up where missing")
    parser.add_argument("--out", type=Path, default=Path(out), help="the folder of the results' JSON")
    parser.add_argument("--report", type=Path, help=f"the document to write ({document}; none if --quick)")
    parser.set_defaults(document=Path(__file__).parents[1] / document)
    return parser


def device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))


def parsed(parser: argparse.ArgumentParser, arguments: list[str] | None, names: Sequence[str]) -> argparse.Namespace:
    """What was given, `only` as a list of cells; ends the process with a sentence where it cannot be measured."""
    given = parser.parse_args(arguments)
    given.only = [name.strip() for name in given.only.split(",") if name.strip()] or [*names]
    unknown = [name for name in given.only if name not in names]
    if unknown:
        parser.error(f"there is no cell {unknown[0]!r}; the cells are {', '.join(names)}")
    if getattr(given, "device", "cpu") != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {given.device} was given and there is no such accelerator here; use cpu")
    if given.threads:
        torch.set_num_threads(given.threads)
    return given


def run(
    benchmark: str,
    given: argparse.Namespace,
    folder: Path,
    measure: Callable[[str], Record],
    short: Callable[[Record], Any],
    render: Callable[[], str],
) -> Record:
    """Measure the cells that have no result in `folder`, or list them; one line of JSON is printed last.

    A cell is one file, written whole. `short` is what a record is in that line; `render` makes the document at the end.
    """
    records: dict[str, Record] = {}
    for name in given.only:
        file = folder / f"{name.replace('/', '_')}.json"
        if given.list:
            print(name, "done" if file.exists() else "")
            continue
        if file.exists() and not given.again:
            records[name] = json.loads(file.read_text())
            continue
        began = time.perf_counter()
        record = {"cell": name, **measure(name)}
        record["seconds"] = time.perf_counter() - began
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1))
        partial.rename(file)
        records[name] = record
        print(f"{name}: {json.dumps(short(record))} in {record['seconds']:.0f} s", file=sys.stderr, flush=True)
    target = given.report or (None if given.quick else given.document)
    if target and not given.list:
        target.write_text(render())
    summary = {"benchmark": benchmark, "cells": {name: short(record) for name, record in records.items()}}
    print(json.dumps(summary))
    return summary


def results(out: Path, pattern: str, quick: bool) -> list[Record]:
    """All results in folders of a name, for a document: those of --quick, or the others."""
    files = [f for f in sorted(out.glob(f"{pattern}/*.json")) if ("quick" in f.parent.name) == quick]
    return [json.loads(f.read_text()) for f in files]
