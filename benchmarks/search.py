"""A step of prompt search beside the published loop's (Shin et al. 2020), at equal candidates on the same rows.

    python -m benchmarks.search                      every cell that has no result yet, then SEARCH.md
    python -m benchmarks.search --only gpt2/10 --pool 32 --again
    python -m benchmarks.search --quick              tiny models: whether it works, not how fast

A cell is void unless both sides' candidate losses agree (largest difference, relative, at most 1e-5 in fp32).
Operations are torch's count. `once` is what our side spends once a search (the rows' keys and values); it is in no
ratio.
`ratio` compares a step in which every candidate is read whole; `raced` one in which those that cannot win are dropped,
with the same decision; `halved` one with a quarter of the evaluations, whose decision may be another. How much racing
spares depends on the model and the rows: random weights make candidates alike, so it is little here.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.parts import cells, shapes
from benchmarks.parts.measure import machine
from benchmarks.parts.search_peer import PaperLoop
from foreword.methods.registry import make_job
from foreword.methods.triggers.beam_search import Verify
from foreword.methods.triggers.gradients import embeddings_of, first_order, slot_gradient
from foreword.methods.triggers.prompt_slots import Prompt
from foreword.methods.triggers.search_space import SearchSpace, make_field
from foreword.methods.triggers.selection_rows import SelectionRows
from foreword.methods.triggers.swaps import propose

CELLS = ("gpt2/10", "bert/10", "gpt2/100", "bert/100")
TARGETS = {"gpt2": 10.0, "bert": 4.0}
ALLOWED = 1e-5
LENGTH = 5
HEAD = """# A step of prompt search

Written by `python -m benchmarks.search`: one step of Foreword's AutoPrompt beside one of the published loop (Shin et
al. 2020), the same candidates on the same rows of SST-2's lengths, prompts of five, the paper's objective over the
whole vocabulary, published shapes with random weights. A cell is void unless the losses of all candidates agree to
1e-5.

- ratio: operations of the published step over ours, as torch counts them, every candidate read whole.
- raced: where candidates that cannot win are dropped, with the same decision; random weights make candidates alike, so
  it is little here. halved: a quarter of the evaluations, whose decision may be another.
- once: what ours spends once a search, in no ratio. seconds: of single steps on a machine shared with other work.

| shape/candidates | machine | rows | GFLOP ours | theirs | once | ratio | raced | halved | seconds | loss gap | goal |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = cells.options("search", __doc__ or "", "tiny models", "../shared/data/sst2/train.jsonl", "SEARCH.md")
    parser.add_argument("--pool", type=int, default=0, help="rows of the pool (0: 64, or 12 if --quick)")
    return cells.parsed(parser, arguments, CELLS)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    given = parse(arguments)

    def measured(name: str) -> dict[str, Any]:
        family, candidates = name.split("/")
        return {"machine": machine("cpu"), **measure(family, int(candidates), given)}

    folder = given.out / ("search-quick" if given.quick else "search")
    return cells.run(
        "search", given, folder, measured, _short, lambda: render(cells.results(given.out, folder.name, given.quick))
    )


def measure(family: str, candidates: int, given: argparse.Namespace) -> dict[str, Any]:
    """Both sides' losses of the same candidates, operations and seconds of one step."""
    rows = given.pool or (12 if given.quick else 64)
    shape = (shapes.SMOKE if given.quick else shapes.FULL)[family]
    model = shapes.build(shape, torch.float32, "cpu")
    model.set_attn_implementation("eager")
    file = None if given.quick else Path(given.rows)
    lm = shapes.wrapped(shapes.build(shape, torch.float32, "cpu"))
    with FlopCounterMode(display=False) as once:
        field = field_of(lm, file, rows)
    labels = [int(y) for block in field.pool.blocks for y in block.label_B]
    theirs = PaperLoop(model, field.encoded, labels)
    now = tuple(field.allowed_A[1000 : 1000 + LENGTH].tolist())
    proposals, ours, our_flops, our_seconds = our_step(field, field.pool, now, candidates, "all")
    began = time.perf_counter()
    with FlopCounterMode(display=False) as counter:
        expected = theirs.step(now, proposals)
    their_seconds, their_flops = time.perf_counter() - began, float(counter.get_total_flops())
    gap = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(ours, expected, strict=True))
    record: dict[str, Any] = {"rows": rows, "candidates": len(proposals), "gate": {"gap": gap, "allowed": ALLOWED}}
    if not gap <= ALLOWED:
        return record | {"void": "the candidates' losses disagree"}
    raced = our_step(field, field.pool, now, candidates, "race")
    halved = our_step(field, field.pool, now, candidates, "halving")
    return record | {
        "flops": {
            "ours": our_flops,
            "raced": raced[2],
            "halved": halved[2],
            "theirs": their_flops,
            "once": float(once.get_total_flops()),
        },
        "step_seconds": {"ours": our_seconds, "raced": raced[3], "halved": halved[3], "theirs": their_seconds},
        "ratio": their_flops / our_flops,
        "ratio_raced": their_flops / raced[2],
        "ratio_halved": their_flops / halved[2],
        "ratio_seconds": their_seconds / our_seconds,
        "target": TARGETS[family],
    }


def field_of(lm: Any, file: Path | None, rows: int) -> SearchSpace:
    """The same field that a search has; its gradient is over 32 rows at most."""
    task = shapes.task_of(shapes.sentences(file, rows))
    task = task.with_(train=task.train[:rows])
    options = {"length": LENGTH, "pool_rows": rows, "gradient_rows": 32, "objective": "likelihood"}
    job = make_job(lm, task, "autoprompt", options=options)
    return make_field(lm, job, job.config)


def our_step(
    field: SearchSpace, pool: SelectionRows, now: Prompt, candidates: int, verify: Verify
) -> tuple[list[Prompt], list[float], float, float]:
    """The candidates of one step, their losses, operations and seconds. The prompt's own loss comes with the rest."""
    bound = float("inf") if verify == "all" else pool.losses([now])[0]  # a search knows it from the step before
    began = time.perf_counter()
    with FlopCounterMode(display=False) as counter:
        pool.base = None
        pool.set_base(now)
        _, grad_PD = slot_gradient(field.lm, field.gradient_blocks(0), embeddings_of(field.lm, now), "likelihood")
        change_PA = first_order(field.lm, grad_PD, now, field.allowed_A)
        given = propose(change_PA, now, field.allowed_A, candidates, seen=set())
        prompts = [c.prompt for c in given]
        costs = [0.0] * len(prompts)
        if verify == "halving":
            found = pool.halved(prompts, costs, bound)
        else:
            found = pool.race(prompts, costs, bound, shrink=verify == "race")
    seconds = time.perf_counter() - began
    return prompts, [m.loss for m in found], float(counter.get_total_flops()), seconds


def render(records: Sequence[dict[str, Any]]) -> str:
    """The document: a line a cell."""
    lines = []
    for r in sorted(records, key=lambda r: CELLS.index(r["cell"])):
        place = f"{r['machine']['device']}, {r['machine']['threads']} thread(s), float32"
        if "void" in r:
            lines.append(f"| {r['cell']} | {place} | {r['rows']} | | | | | | | | {r['gate']['gap']:.1e} | void |")
            continue
        flops, seconds = r["flops"], r["step_seconds"]
        goal = "reached" if _short(r)["reached"] else f"**no**: < {r['target']:g}x"
        counts = " | ".join(f"{flops[k] / 1e9:,.0f}" for k in ("ours", "theirs", "once"))
        ratios = " | ".join(f"{r[k]:.1f}" for k in ("ratio", "ratio_raced", "ratio_halved"))
        lines.append(
            f"| {r['cell']} | {place} | {r['rows']} | {counts} | {ratios} | {seconds['ours']:.1f} for "
            f"{seconds['theirs']:.1f} | {r['gate']['gap']:.1e} | {goal} |"
        )
    return HEAD + "\n".join(lines) + "\n"


def _short(record: dict[str, Any]) -> dict[str, Any]:
    if "void" in record:
        return {"void": record["void"], "gap": record["gate"]["gap"]}
    return {
        "ratio": round(record["ratio"], 2),
        "ratio_raced": round(record["ratio_raced"], 2),
        "ratio_halved": round(record["ratio_halved"], 2),
        "gap": record["gate"]["gap"],
        "reached": max(record["ratio"], record["ratio_raced"]) >= record["target"],
    }


if __name__ == "__main__":
    main()
