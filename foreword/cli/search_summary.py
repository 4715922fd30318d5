"""Describe for a person what a search found: the choice, its cost, and how far its score is from the test rows'."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.inference.predictor import Prompted
    from foreword.tasks.task import Task


def search_lines(found: dict[str, Any], prompted: "Prompted", task: "Task") -> list[tuple[str, str]]:
    """Return the result of a search as names and values. The test rows are read once, after the choice."""
    from foreword.inference.metrics import measure

    lines = [
        ("chosen", f"{found['chosen']} ({found['source']})"),
        ("evaluations", f"{found['evaluations']:,} of {found['budget']:,}; {found['candidates']} candidates"),
        ("selection", f"{found['selection_metric']:.4g} on {found['chosen_on_rows']} rows"),
    ]
    whole = prompted.artefact.metrics.get("exhaustive")
    if whole:
        rank = "no rank correlation" if whole["spearman"] is None else f"Spearman {whole['spearman']:.3f}"
        lines.append(("all rows", f"{rank}; the choice is number {whole['choice_rank']}, {whole['regret']:.4g} below"))
    if task.test and prompted.lm is not None:
        measured = measure(prompted.lm, prompted.artefact, task, task.test)
        score = float(measured[task.metric or "accuracy"])
        lines.append(("test", f"{score:.4g} on {len(task.test)} rows"))
        lines.append(("selection - test", f"{found['selection_metric'] - score:+.4g}"))
    return lines


def candidate_lines(candidates: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the best candidates, one line for each."""
    for number, one in enumerate(candidates, 1):
        text = one["text"] or "the template as written"
        yield f"candidate {number}", f"{one['score']:.4g} on {one['rows']} rows: {text} ({one['source']})"
