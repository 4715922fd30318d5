"""Training beside PEFT's newest release: speed, memory and operations, after a gate that both compute the same.

    python -m benchmarks.train                          every cell that has no result yet, then RESULTS.md
    python -m benchmarks.train --list                   the cells and whether they are done
    python -m benchmarks.train --only gpt2/prompt/buckets,bert/prefix/examples --again
    python -m benchmarks.train --dtype bfloat16 --threads 2

Stop it at any time; the same command goes on. The last line printed is JSON.
"""

import argparse
import json
import warnings
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.parts import cells, measure, report, tenants
from benchmarks.parts.measure import CELLS, QUICK, Setting

TENANTS = [f"tenants/{family}/{method}" for family in ("gpt2", "bert") for method in ("prompt-tuning", "prefix-tuning")]
NAMES = [cell.name for cell in CELLS] + TENANTS


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = cells.options("train", __doc__, "tiny models, few steps", "../shared/data/sst2/train.jsonl", "RESULTS.md")
    cells.device_options(parser)
    parser.add_argument("--timed", type=int, default=0, help="pairs of steps to time (0: 6)")
    parser.add_argument("--tenants", type=int, default=0, help="learners of the tenants' cells (0: 300)")
    parser.add_argument("--peak", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--setting", default="", help=argparse.SUPPRESS)
    return cells.parsed(parser, arguments, NAMES)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    given = parse(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries measured
        if given.peak:
            return _peak(given)
        return _all(given)


def _peak(given: argparse.Namespace) -> dict[str, Any]:
    cell = next(c for c in CELLS if [c.name] == given.only)
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
    return cells.run(
        "train",
        given,
        given.out / f"{given.device}-{given.dtype}{'-quick' if given.quick else ''}",
        lambda name: {"setting": asdict(setting), "machine": machine, **_measured(name, setting, given)},
        _short,
        lambda: report.render(cells.results(given.out, "c*-*", given.quick)),
    )


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


if __name__ == "__main__":
    main()
