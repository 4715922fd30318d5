"""Demonstrations read once for all rows, beside the same model that reads them with every row; equal scores, or void.

    python -m benchmarks.few_shot                      every cell that has no result yet, then FEW_SHOT.md
    python -m benchmarks.few_shot --list               the cells and whether they are done
    python -m benchmarks.few_shot --only mini/16 --again

Stop it at any time; the same command goes on. The last line printed is JSON.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.parts import cells, shapes
from benchmarks.parts.measure import clock, machine
from foreword.core.prompts import HardPrompt, stack
from foreword.inference.batched import stacked_scores
from foreword.inference.scoring import encode_value
from foreword.methods.registry import train
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoded
from foreword.models.load import load
from foreword.models.score import score_all
from foreword.tasks.task import Task

NAMES = [f"{model}/{shots}" for model in ("mini", "gpt2") for shots in (4, 16)]
TARGETS = {16: 5.0}  # how many times as fast at so many demonstrations, over 100 rows
ROWS, TOLERANCE = 100, 1e-4
HEAD = """# Demonstrations read once

Written by `python -m benchmarks.few_shot`. A few-shot prompt over {rows} rows of SST-2's lengths: Foreword reads the
demonstrations once and every row after their keys and values; the other side is the same frozen model that reads them
with every row, in batches of as many tokens. Rounds of both are taken in turn; the ratio is the median over rounds with
a 95% bootstrap interval. A cell is void unless all label log-probabilities agree to {tolerance:g}.

- `mini`: the embedded model (6 layers of 384). `gpt2`: GPT-2-small's shape with random weights.
- tokens: positions that the model computed for all rows together.
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = cells.options(
        "few_shot", __doc__, "a tiny model and few rows", "../shared/data/sst2/test.jsonl", "FEW_SHOT.md"
    )
    cells.device_options(parser)
    parser.add_argument("--timed", type=int, default=5, help="rounds to time")
    return cells.parsed(parser, arguments, NAMES)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    given = parse(arguments)
    return cells.run(
        "few_shot",
        given,
        given.out / f"few-shot-{'quick' if given.quick else given.device}-{given.dtype}",
        lambda name: {"dtype": given.dtype, "machine": machine(given.device), **measured(name, given)},
        short,
        lambda: render(cells.results(given.out, "few-shot-*", given.quick)),
    )


def model_of(name: str, given: argparse.Namespace) -> FrozenLM:
    dtype = getattr(torch, given.dtype)
    if name == "mini" and not given.quick:
        return load("foreword-mini-causal", dtype=dtype, device=given.device)
    made = shapes.SMOKE if given.quick else shapes.FULL
    return shapes.wrapped(shapes.build(made["gpt2"], dtype, given.device))


def task_of(given: argparse.Namespace, shots: int) -> Task:
    """So many rows to show, and others to read."""
    count = 12 if given.quick else ROWS
    rows = shapes.sentences(Path(given.rows) if given.rows else None, 4 * (count + shots))
    distinct = list({row["text"]: row for row in rows}.values())[: count + shots]
    task = shapes.task_of(distinct[:shots])
    return task.with_(test=shapes.task_of(distinct[shots:]).train)


def measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The gate, then both sides in turn."""
    kind, shots = name.split("/")
    lm, task = model_of(kind, given), task_of(given, int(shots))
    artefact = train(lm, task, "few-shot", demos=int(shots)).artefact
    if artefact.metrics["demonstrations"]["shown"] != int(shots):
        return {"void": f"{artefact.metrics['demonstrations']['shown']} of {shots} demonstrations fit the context"}
    encoded = encode_value(lm, artefact.value, artefact.format, task.test)
    lead, columns = encoded[0].shared, sum(map(len, encoded))
    record: dict[str, Any] = {"rows": len(encoded), "tokens": {"theirs": columns}}
    if any(e.shared != lead for e in encoded) or not lead:
        return record | {"void": "the rows do not begin alike, so nothing is shared"}
    record["tokens"]["ours"] = lead + columns - lead * len(encoded)
    ours, theirs = shared(lm, encoded), whole(lm, encoded)  # warms up as well
    gap = float((ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max())
    record["gate"] = {"gap": gap, "allowed": TOLERANCE}
    if not gap <= TOLERANCE:
        return record | {"void": "the scores disagree"}
    times = []
    for _ in range(2 if given.quick else given.timed):
        began = clock(given.device)
        shared(lm, encoded)
        middle = clock(given.device)
        whole(lm, encoded)
        times.append((middle - began, clock(given.device) - middle))
    return record | timed(times)


def shared(lm: FrozenLM, encoded: Sequence[Encoded]) -> torch.Tensor:
    """The library's own road."""
    return stacked_scores(lm, [HardPrompt.empty()], [encoded])[0]


def whole(lm: FrozenLM, encoded: Sequence[Encoded]) -> torch.Tensor:
    """Every row with its demonstrations, in batches of as many tokens."""
    bank = stack([HardPrompt.empty()], lm.embed, lm.device)
    return score_all(lm, [replace(e, shared=0) for e in encoded], bank, torch.zeros(len(encoded), dtype=torch.long))


def timed(times: Sequence[tuple[float, float]]) -> dict[str, Any]:
    ratios = np.array([theirs / ours for ours, theirs in times])
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {
        "ours": [ours for ours, _ in times],
        "theirs": [theirs for _, theirs in times],
        "ratio": {"median": float(np.median(ratios)), "low": float(low), "high": float(high)},
    }


def short(record: dict[str, Any]) -> dict[str, Any]:
    if "void" in record:
        return {"void": record["void"]}
    return {"ratio": round(record["ratio"]["median"], 2), "reached": verdict(record)}


def verdict(record: dict[str, Any]) -> str:
    """Whether the goal of this number of demonstrations was reached; empty where there is none."""
    goal = TARGETS.get(int(record["cell"].split("/")[1]))
    if goal is None:
        return ""
    return "reached" if record["ratio"]["median"] >= goal else f"**no**: < {goal:g}x"


def render(records: Sequence[dict[str, Any]]) -> str:
    lines = [
        HEAD.format(rows=ROWS, tolerance=TOLERANCE),
        "| model/demonstrations | machine | rows/s shared | rows/s whole | ratio | tokens | difference | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(records, key=lambda r: NAMES.index(r["cell"])):
        place = f"{r['machine']['device']}, {r['machine']['threads']} thread(s), {r['dtype']}"
        if "void" in r:
            lines.append(f"| {r['cell']} | {place} | | | | | | void: {r['void']} |")
            continue
        rates = [r["rows"] / float(np.median(r[side])) for side in ("ours", "theirs")]
        ratio = f"{r['ratio']['median']:.2f} [{r['ratio']['low']:.2f}, {r['ratio']['high']:.2f}]"
        tokens = f"{r['tokens']['ours']:,} for {r['tokens']['theirs']:,}"
        lines.append(
            f"| {r['cell']} | {place} | {rates[0]:.1f} | {rates[1]:.1f} | {ratio} | {tokens} | {r['gate']['gap']:.1e} "
            f"| {verdict(r)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
