"""Results as a document: every cell that was measured, the ones that lose included."""

from collections.abc import Sequence
from typing import Any

from benchmarks.parts.measure import CELLS, TARGETS, Cell

HEAD = """# Results

Written by `python -m benchmarks.train`; one JSON file a cell is kept in `runs/bench`. All models have published shapes
and random weights. Training steps of Foreword and of PEFT are run in turn, from the same numbers, on the same rows in
the same order; a cell is void unless both sides' losses agree (the largest relative difference is in the table).

- `examples`: every step is one pass, padded as in PEFT's own examples: to 64 pieces (causal language modelling), or to
  the longest row of the batch (sequence classification, where the models are masked).
- `buckets`: PEFT is given Foreword's passes of rows of similar length, padded to the longest of each.
- ratio: PEFT's seconds a step over Foreword's, median over pairs with a 95% bootstrap interval.
- share: of the machine's measured rate of matrix products, by the operations that torch counts; for Foreword also by
  the closed form of the fewest operations (`benchmarks/parts/floor.py`). Torch does not count inside a CPU's fused
  attention, so a count may lie a little below the closed form.
- peak: high-water mark of a process that runs one side alone (resident bytes on a CPU), model included.
"""


def render(records: Sequence[dict[str, Any]]) -> str:
    """The document; cells of one device, dtype and set of versions share a section."""
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for record in records:
        machine = record["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
        told = (machine["device"], f"{machine['threads']} thread(s)", record["setting"]["dtype"], versions)
        groups.setdefault(told, {})[record["cell"]] = record
    parts = [HEAD]
    for told, group in sorted(groups.items()):
        parts.append(f"## {told[0]}, {told[1]}, {told[2]}\n\n{told[3]}\n")
        speeds = [group[cell.name] for cell in CELLS if cell.name in group]
        if speeds:
            parts.append(_speeds(speeds))
        stacks = [r for r in group.values() if "tenants" in r]
        if stacks:
            parts.append(_tenants(stacks))
    return "\n".join(parts)


def verdict(record: dict[str, Any]) -> str:
    """Whether a cell reaches its target: yes, no (with what it misses), or void."""
    if "void" in record:
        return "void"
    wanted = TARGETS[tuple(record["cell"].split("/"))]
    missed = []
    if record["ratio"]["median"] < wanted:
        missed.append(f"< {wanted:g}x")
    if record.get("peak") and record["peak"]["ours"]["bytes"] >= record["peak"]["theirs"]["bytes"]:
        missed.append("peak")
    return f"**no**: {', '.join(missed)}" if missed else "yes"


def _speeds(records: list[dict[str, Any]]) -> str:
    head = (
        "| cell | ratio | wanted | reached | s/step | PEFT s/step | GFLOP floor | counted | PEFT's | share (floor) | "
        "PEFT's share | peak MB | PEFT's MB | gap, small | gap, full |"
    )
    lines = [head, "|" + " --- |" * 15]
    for record in records:
        cell = Cell(*record["cell"].split("/"))
        wanted = TARGETS[(cell.family, cell.method, cell.padding)]
        gate = record["gate"]
        if "void" in record:
            lines.append(f"| {cell.name} | void: {record['void']} ({gate['gap']:.1e}) |" + " |" * 13)
            continue
        ratio, flops, ours, theirs = (record[k] for k in ("ratio", "flops", "ours", "theirs"))
        peaks = [f"{record['peak'][s]['bytes'] / 1e6:,.0f}" if "peak" in record else "" for s in ("ours", "theirs")]
        lines.append(
            f"| {cell.name} | {ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] | {wanted:g} "
            f"| {verdict(record)} | {ours['seconds']:.2f} | {theirs['seconds']:.2f} | {flops['floor'] / 1e9:,.0f} "
            f"| {flops['ours'] / 1e9:,.0f} | {flops['theirs'] / 1e9:,.0f} | {ours['share_of_rate']:.0%} "
            f"({ours['floor_share_of_rate']:.0%}) | {theirs['share_of_rate']:.0%} | {peaks[0]} | {peaks[1]} "
            f"| {gate['gap']:.0e} | {record['same']['gap']:.0e} |"
        )
    first = next((r for r in records if "ratio" in r), None)
    rates = sorted(r["rate"] for r in records if "rate" in r)
    note = ""
    if first:
        setting = first["setting"]
        note = (
            f"\nMatrix products: {rates[0] / 1e9:,.0f} to {rates[-1] / 1e9:,.0f} GFLOP/s. {setting['timed']} timed "
            f"steps of {setting['batch_size']} rows; gate of {first['gate']['steps']} steps on the small shape.\n"
        )
    return "\n".join(lines) + "\n" + note


def _tenants(records: list[dict[str, Any]]) -> str:
    lines = [
        "| cell | learners | rows/s of one alone | rows/s together | ratio | peak MB |",
        "|" + " --- |" * 6,
    ]
    for r in records:
        lines.append(
            f"| {r['cell']} | {r['tenants']} | {r['alone']['rows_per_second']:.1f} "
            f"| {r['together']['rows_per_second']:.1f} | {r['ratio']:.2f} | {r['high_water'] / 1e6:,.0f} |"
        )
    return "\n".join(lines) + "\n"
