"""Serving results as a document: every cell that was measured, the ones that lose included."""

from collections.abc import Sequence
from typing import Any

HEAD = """# Serving

Written by `python -m benchmarks.serve`; one JSON file a cell is kept in `runs/bench`. The models have random weights, a
prompt is 20 vectors before the text, texts are SST-2's, and generation adds 32 pieces to each, greedily. Everything
runs in one process on one machine; tokenising is in every side's time.
"""
GOALS = {"hand": 0.95, "peft loop": 8.0}


def short(record: dict[str, Any]) -> dict[str, Any]:
    """What a line on the screen says of a cell."""
    if "void" in record:
        return {"void": record["void"]}
    what = record["cell"].split("/")[0]
    if what == "peers":
        return {side: round(found["median"], 2) for side, found in record["ratio"].items()}
    if what in ("ratio", "tiers"):
        return {"ratio": round(record["ratio"]["median"], 3)}
    if what == "open":
        return {"burst": round(record["burst"], 1), "within": round(record["within"], 1)}
    return {"p99": record["p99"]}


def render(records: Sequence[dict[str, Any]]) -> str:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records:
        on, how = record["machine"], record["setting"]
        versions = ", ".join(f"{k} {v}" for k, v in on["versions"].items())
        told = (how["shape"], on["device"], f"{on['threads']} thread(s)", how["dtype"], versions)
        groups.setdefault(told, []).append(record)
    parts = [HEAD]
    for told, group in sorted(groups.items()):
        parts.append(f"## {', '.join(told[:4])}\n\n{told[4]}\n")
        for kind, table in (
            ("peers", _peers),
            ("ratio", _ratios),
            ("tiers", _ratios),
            ("open", _open),
            ("cold", _cold),
        ):
            own = [record for record in group if record["cell"].split("/")[0] == kind]
            if own:
                parts.append(table(own))
    return "\n".join(parts)


def _peers(records: list[dict[str, Any]]) -> str:
    lines = [
        "How many times as long the others take for the same requests (median and 95% bootstrap interval over rounds",
        "in turn). `hand` is one batch of input embeddings through transformers; `peft loop` sets a request's adapter.",
        "Goals: hand at least 0.95 with one prompt, peft loop at least 8 with 64. Every side gives the same answers:",
        "the gate is the largest difference of a probability, or the number of texts that differ.\n",
        "| kind | prompts | requests | hand | PEFT task by task | PEFT loop | gate | goal |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for record in sorted(records, key=lambda r: (r["cell"].split("/")[1], int(r["cell"].split("/")[2]))):
        _, kind, tasks = record["cell"].split("/")
        if "void" in record:
            lines.append(f"| {kind} | {tasks} | void: {record['void']} | | | | | |")
            continue
        ratio = record["ratio"]
        goal = "hand" if tasks == "1" else "peft loop"
        reached = "reached" if ratio[goal]["median"] >= GOALS[goal] else f"**no**, {GOALS[goal]:g} wanted"
        cells = [_interval(ratio[side]) if side in ratio else "" for side in ("hand", "peft grouped", "peft loop")]
        gate = f"{record['gate']:.1e}" if kind == "classification" else str(record["gate"])
        lines.append(f"| {kind} | {tasks} | {record['requests']} | {' | '.join(cells)} | {gate} | {reached} |")
    return "\n".join(lines) + "\n"


def _ratios(records: list[dict[str, Any]]) -> str:
    some = "share" in records[0]
    lines = [
        (
            f"Compiled prompts for {records[0]['share']:.0%} of all: what is missing is compiled again, in one pass"
            " with its like.\n"
            if some
            else "Requests a second with every prompt of the store in use, over those with one (goal: at least 0.9).\n"
        ),
        "| kind | law | prompts | one, requests/s | all, requests/s | ratio | goal |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for record in records:
        _, kind, law = record["cell"].split("/")
        one, many = (sorted(record[key])[len(record[key]) // 2] for key in ("one", "many"))
        goal = "" if some else "reached" if record["ratio"]["median"] >= 0.9 else "**no**"
        lines.append(
            f"| {kind} | {law} | {record['prompts']:,} | {one:.1f} | {many:.1f} | {_interval(record['ratio'])} "
            f"| {goal} |"
        )
    return "\n".join(lines) + "\n"


def _open(records: list[dict[str, Any]]) -> str:
    lines = [
        "Poisson arrivals, whatever became of those before: the highest rate tried at which 99 of 100 answers came",
        "within the bound, and milliseconds from arrival to answer at half of the burst's rate.\n",
        "| kind | law | prompts | burst, requests/s | within the bound, requests/s | bound, ms | p50 | p99 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for record in sorted(records, key=lambda r: (*r["cell"].split("/")[1:3], int(r["cell"].split("/")[3]))):
        _, kind, law, prompts = record["cell"].split("/")
        half = min(record["trials"], key=lambda trial: abs(trial["rate"] - 0.5 * record["burst"]))
        lines.append(
            f"| {kind} | {law} | {int(prompts):,} | {record['burst']:.1f} | {record['within']:.1f} | "
            f"{1000 * record['bound']:.0f} | {1000 * half['p50']:.0f} | {1000 * half['p99']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _cold(records: list[dict[str, Any]]) -> str:
    [record] = records
    return (
        f"A prompt that is not in memory is read, checked and ready in {1000 * record['p50']:.1f} ms (median), "
        f"{1000 * record['p99']:.1f} ms (p99 of {record['prompts']:,}). It takes {record['bytes_on_disk']:,} bytes on "
        f"disk, {record['bytes_in_memory']:,} in memory and {record['bytes_compiled']:,} compiled.\n"
    )


def _interval(found: dict[str, Any]) -> str:
    return f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
