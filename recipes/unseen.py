"""Seen and unseen: what a prefix and fine-tuning write of values and of kinds of place that no training row had.

The embedded generation task (`builtin:listings`), its training rows alone, and three sets of test rows. Expect more
slot errors on unseen values. Li & Liang (2021, section 6.4) found prefixes ahead of fine-tuning on unseen topics.

    python recipes/unseen.py                 what is missing in runs/unseen, then docs/unseen.md
    python recipes/unseen.py --quick         a tiny model, two steps, few rows: whether it works
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ending import ended

from foreword.core.artefact import Artefact
from foreword.core.files import write_whole
from foreword.core.format import Decoding
from foreword.evaluation.compare import FailedRun
from foreword.evaluation.episode_report import percent
from foreword.evaluation.predictions import TextPredictions
from foreword.evaluation.statistics import Resampled, difference, interval
from foreword.inference.predictor import Prompted
from foreword.methods.registry import train
from foreword.models.base import FrozenLM
from foreword.models.load import load
from foreword.tasks.read import read_task
from foreword.tasks.task import Task

TESTS = {"seen": "listings", "unseen values": "listings-values", "unseen kinds": "listings-kinds"}
COMMON: dict[str, Any] = {"steps": 300, "batch_size": 8, "eval_every": 100, "schedule": "linear", "warmup": 20}
METHODS: dict[str, dict[str, Any]] = {
    "prefix-tuning": {"length": 10, "learning_rate": 0.1},
    "fine-tuning": {"learning_rate": 3e-4},
}
METRICS = {"bleu": "BLEU", "slot_error": "slot error rate"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="foreword-mini-causal")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch [1]")
    parser.add_argument("--quick", action="store_true", help="a tiny model, two steps, few rows")
    parser.add_argument("--out", type=Path, default=Path("runs/unseen"))
    parser.add_argument("--write", type=Path, default=Path("docs/unseen.md"))
    given = parser.parse_args(arguments)
    if given.quick:
        given.model, given.dtype = "foreword-tiny-causal", "float32"
    return ended(given.out, lambda: run(given), given.threads)


def run(given: argparse.Namespace) -> list[FailedRun]:
    """Every artefact and text that is missing, then the page."""
    lm = load(given.model, dtype=given.dtype)
    tasks = {place: read_task(f"builtin:{name}") for place, name in TESTS.items()}
    if given.quick:
        tasks = {place: task.limit(train=8, validation=4, test=6) for place, task in tasks.items()}
    drawn: dict[tuple[str, str], list[dict[str, Resampled]]] = {}
    for seed in range(given.seeds):
        for method in METHODS:
            made = made_of(given, lm, tasks["seen"], method, seed)
            for place, task in tasks.items():
                found = texts_of(given, lm, made, task, f"{method}-{seed}-{TESTS[place]}")
                drawn.setdefault((method, place), []).append(found.resampled([*METRICS]))
    write_whole(given.write, page(given, lm, tasks, drawn).encode())
    print(f"{given.write} is made of {len(drawn)} cells")
    return []


def made_of(given: argparse.Namespace, lm: FrozenLM, task: Task, method: str, seed: int) -> Artefact:
    """The artefact of a seed, trained unless it is there."""
    folder = given.out / f"{method}-{seed}"
    if (folder / "foreword.json").exists():
        return Artefact.load(folder)
    options = {**COMMON, **METHODS[method]}
    if given.quick:
        options |= {"steps": 2, "eval_every": 2}
    form = task.format(lm.kind, decoding=Decoding(64, stop_strings=("\n",)))
    print(f"training {method}, seed {seed}", file=sys.stderr, flush=True)
    artefact = train(lm, task, method, seed=seed, form=form, **options).artefact
    artefact.save(folder)
    return artefact


def texts_of(given: argparse.Namespace, lm: FrozenLM, made: Artefact, task: Task, name: str) -> TextPredictions:
    """What the artefact writes of the test rows, written unless it is there."""
    file = given.out / "texts" / f"{name}.json"
    if not file.exists():
        print(f"writing {name}", file=sys.stderr, flush=True)
        read = TextPredictions.of(task.judge, Prompted(lm, made).answers(task.test), task.test)
        write_whole(file, json.dumps(read.answers).encode())
    answers = tuple(json.loads(file.read_text(encoding="utf-8")))
    samples = tuple((answer or "",) for answer in answers)
    targets = tuple(row.targets for row in task.test)
    return TextPredictions(task.judge, answers, samples, targets, (1,) * len(answers), task.judge.meanings(task.test))


def page(
    given: argparse.Namespace,
    lm: FrozenLM,
    tasks: dict[str, Task],
    drawn: dict[tuple[str, str], list[dict[str, Resampled]]],
) -> str:
    """Means over seeds with 95% intervals over test rows and seeds, and what unseen rows cost each method."""
    first = tasks["seen"]
    rows = ", ".join(f"{len(task.test)} {place}" for place, task in tasks.items())
    lines = [
        "# Seen and unseen",
        "",
        f"Written by `python recipes/unseen.py`: {lm.name}, {given.dtype}, {len(first.train)} training rows of the "
        f"embedded tables of places to go, {given.seeds} seeds, {COMMON['steps']} steps of {COMMON['batch_size']} "
        f"texts, greedy. Test rows: {rows}. Of slot errors less is better; intervals are over test rows and seeds.",
    ]
    for metric, title in METRICS.items():
        lines += ["", f"| {title} | {' | '.join(tasks)} |", "| --- |" + " --- |" * len(tasks)]
        for method in METHODS:
            cells = [percent(interval([r[metric] for r in drawn[method, place]])) for place in tasks]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        runs = {key: [r[metric] for r in some] for key, some in drawn.items()}
        apart = [difference(runs["prefix-tuning", place], runs["fine-tuning", place]) for place in tasks]
        lines.append(f"| difference | {' | '.join(percent(d) + ('' if d.shown else ' =') for d in apart)} |")
    return "\n".join([*lines, "", "= marks a difference that is not shown."]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
