"""Training beside PEFT's newest release: speed, memory and operations, after a gate that both compute the same.

    python -m benchmarks.train                          every cell that has no result yet, then RESULTS.md
    python -m benchmarks.train --list                   the cells and whether they are done
    python -m benchmarks.train --only gpt2/prompt/buckets,bert/prefix/examples --again
    python -m benchmarks.train --dtype bfloat16 --threads 2

Stop it at any time; the same command goes on. The last line printed is JSON.
"""

import argparse
import json
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.parts import measure, report, tenants
from benchmarks.parts.measure import CELLS, QUICK, Setting

TENANTS = [f"tenants/{family}/{method}" for family in ("gpt2", "bert") for method in ("prompt-tuning", "prefix-tuning")]
NAMES = [cell.name for cell in CELLS] + TENANTS
HERE = Path(__file__).parent


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="names of cells, with commas between them")
    parser.add_argument("--list", action="store_true", help="name the cells and stop")
    parser.add_argument("--again", action="store_true", help="measure cells anew that have a result")
    parser.add_argument("--quick", action="store_true", help="tiny models, few steps: whether it works, not how fast")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=0, help="threads of torch (0: as the environment says)")
    parser.add_argument("--timed", type=int, default=0, help="pairs of steps to time (0: 6)")
    parser.add_argument("--tenants", type=int, default=0, help="learners of the tenants' cells (0: 300)")
    parser.add_argument("--rows", default="../shared/data/sst2/train.jsonl", help="SST-2 rows; made up where missing")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="the folder of the results' JSON")
    parser.add_argument("--report", type=Path, default=None, help="the document to write (RESULTS.md; none if --quick)")
    parser.add_argument("--peak", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--setting", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    unknown = [name for name in chosen(given.only) if name not in NAMES]
    if unknown:
        parser.error(f"there is no cell {unknown[0]!r}; the cells are {', '.join(NAMES)}")
    if given.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {given.device} was given and there is no such accelerator here; use cpu")
    return given


def chosen(only: str) -> list[str]:
    return [name.strip() for name in only.split(",") if name.strip()] or NAMES


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    given = parse(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries measured
        if given.peak:
            return _peak(given)
        return _all(given)


def _peak(given: argparse.Namespace) -> dict[str, Any]:
    cell = next(c for c in CELLS if c.name == given.only)
    told = json.loads(given.setting)
    torch.set_num_threads(told.pop("threads"))
    found = measure.peak(cell, Setting(**told), given.peak)
    print(json.dumps(found))
    return found


def _all(given: argparse.Namespace) -> dict[str, Any]:
    setting = Setting(dtype=given.dtype, device=given.device, rows=given.rows)
    if given.quick:
        setting = replace(setting, **QUICK)
    if given.timed:
        setting = replace(setting, timed=given.timed)
    machine = measure.machine(given.device)
    folder = given.out / f"{given.device}-{given.dtype}{'-quick' if given.quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    records: dict[str, dict[str, Any]] = {}
    for name in chosen(given.only):
        file = folder / f"{name.replace('/', '_')}.json"
        if given.list:
            print(name, "done" if file.exists() else "")
            continue
        if file.exists() and not given.again:
            records[name] = json.loads(file.read_text())
            continue
        began = time.perf_counter()
        record = {"cell": name, "setting": asdict(setting), "machine": machine, **_measured(name, setting, given)}
        record["seconds"] = time.perf_counter() - began
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1))
        partial.rename(file)
        records[name] = record
        print(_line(record), file=sys.stderr, flush=True)
    if not given.list:
        target = given.report or (None if given.quick else HERE / "RESULTS.md")
        if target:
            files = [f for f in sorted(given.out.glob("*/*.json")) if f.parent.name.endswith("-quick") == given.quick]
            target.write_text(report.render([json.loads(f.read_text()) for f in files]))
    summary = {"benchmark": "train", "cells": {name: _short(record) for name, record in records.items()}}
    print(json.dumps(summary))
    return summary


def _measured(name: str, setting: Setting, given: argparse.Namespace) -> dict[str, Any]:
    if name in TENANTS:
        _, family, method = name.split("/")
        count = given.tenants or (4 if given.quick else 300)
        return tenants.measure(
            family, method, full=setting.full, dtype=setting.dtype, device=setting.device, rows=setting.rows,
            count=count, repeats=2 if given.quick else 5,
        )  # fmt: skip
    cell = next(c for c in CELLS if c.name == name)
    record = measure.speed(cell, setting)
    return record if "void" in record else record | {"peak": measure.peaks(cell, setting)}


def _short(record: dict[str, Any]) -> dict[str, Any]:
    if "tenants" in record:
        return {"ratio": record["ratio"]}
    if "void" in record:
        return {"void": record["void"]}
    return {"ratio": record["ratio"]["median"], "reached": report.verdict(record)}


def _line(record: dict[str, Any]) -> str:
    return f"{record['cell']}: {json.dumps(_short(record))} in {record['seconds']:.0f} s"


if __name__ == "__main__":
    main()
