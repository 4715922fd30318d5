"""Instruction induction (Honovich et al. 2022): APE on 18 tasks, with the gold instructions among its candidates.

Expect little of the embedded model: it has 22 million parameters and hardly follows instructions, so most metrics stay
near 0 and gold instructions are not shown to be better than others. What the table shows is the search: how near the
choice under a budget comes to reading every candidate on every row.

    python recipes/instruction_induction.py --data ../shared/data/instruction_induction
    python recipes/instruction_induction.py --data DIR --model Qwen/Qwen2.5-0.5B-Instruct -o budget=2000 --test 100

Stop it at any time; the same command goes on. `-o` gives any option of ape, proposer=remote among them.

Answers are compared as Honovich et al. (2022) and Zhou et al. (2022) do, by a rule of this recipe alone: up to the
first full stop, without punctuation and " and ". A point between digits does not end the text, and a minus before a
number stays, so that 3.1 is not 3.2 and -5 not 5.
"""

import argparse
import json
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ending import ended

from foreword.core.artefact import Artefact
from foreword.core.files import write_whole
from foreword.core.format import Format
from foreword.errors import DataError
from foreword.evaluation.compare import FailedRun
from foreword.evaluation.statistics import Interval, interval, resample_values
from foreword.inference.answers import answer_rows
from foreword.methods.instructions.ape import ApeConfig
from foreword.methods.instructions.candidates import NONE, with_instruction
from foreword.methods.instructions.instruction_file import given_instructions
from foreword.methods.instructions.search_rows import search_rows
from foreword.methods.registry import train
from foreword.models.base import FrozenLM
from foreword.models.load import load
from foreword.tasks.extract import NO_ANSWER
from foreword.tasks.read import read_task
from foreword.tasks.rows import Row
from foreword.tasks.task import Task

SMALL = {
    "candidates": 8, "resampled": 4, "selection_rows": 16, "budget": 160, "proposal_tokens": 24, "frame": "paper",
}  # fmt: skip
GOLD = 3  # gold instructions that are read on the test rows, the first ones
START = "# Instruction induction"

_END = re.compile(r"\n|(?<!\d)\.|\.(?!\d)")
_HYPHEN = re.compile(r"-(?!\d)|(?<=\w)-")
_DROPPED = str.maketrans("", "", string.punctuation.replace("-", "").replace(".", ""))


def normalised(text: str) -> str:
    """The first line to its first full stop, in lower case, without punctuation and " and ", with single spaces."""
    line = _END.split(text.replace(" and ", " ").strip(), maxsplit=1)[0].lower()
    return " ".join(_HYPHEN.sub(" ", line).translate(_DROPPED).split())


def exact_match(text: str, target: str) -> float:
    """Whether both are the same once normalised; where that leaves nothing of them, as they are."""
    written, wanted = normalised(text), normalised(target)
    return float(written == wanted and (bool(wanted) or text.strip() == target.strip()))


def f1(text: str, target: str) -> float:
    """Harmonic mean of precision and recall over words, counted with repetition."""
    written, wanted = normalised(text).split(), normalised(target).split()
    if not written or not wanted:
        return float(written == wanted)
    shared = sum((Counter(written) & Counter(wanted)).values())
    return 2 * shared / (len(written) + len(wanted))


def contains(text: str, target: str) -> float:
    """Whether the target stands in the text as whole words."""
    wanted = normalised(target)
    return float(bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", normalised(text)) is not None)


def exact_set(text: str, target: str) -> float:
    """Whether both have the same words, in whatever order."""
    return float(set(normalised(text).split()) == set(normalised(target).split()))


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "contains": contains,
    "exact_set": exact_set,
}


def main() -> int:
    arguments = parsed()
    return ended(arguments.out, lambda: run(arguments), arguments.threads)


def run(arguments: argparse.Namespace) -> list[FailedRun]:
    options = {**SMALL, **dict(text.split("=", 1) for text in arguments.options)}
    folders = sorted(p.parent for p in arguments.data.glob("*/train.jsonl"))
    if arguments.only:
        folders = [f for f in folders if f.name in arguments.only.split(",")]
    if not folders:
        raise DataError(f"{arguments.data} holds no tasks (folders with train.jsonl); give --data DIR.")
    lm = load(arguments.model, kind="causal")
    lines = []
    for folder in folders:
        place = arguments.out / f"{folder.name}.json"
        asked = {"model": lm.name, "weights": lm.fingerprint().weights, "options": options, "seed": arguments.seed,
                 "test": arguments.test}  # fmt: skip
        line = json.loads(place.read_text()) if place.exists() else {}
        if line.get("asked") != json.loads(json.dumps(asked)):
            print(f"{folder.name}: searching", file=sys.stderr, flush=True)
            task = read_task(folder).limit(train=400, validation=0, test=arguments.test, seed=arguments.seed)
            checkpoint = arguments.out / f"{folder.name}.search"
            line = {"asked": asked, **one(lm, task, folder.parent / "tasks.json", options, arguments.seed, checkpoint)}
            write_whole(place, json.dumps(line, indent=1).encode())
        lines.append(line)
        print(f"{folder.name}: {line['chosen']!r}", file=sys.stderr, flush=True)
    text = page(lines, lm)
    print(text)
    if arguments.page:
        write_whole(arguments.page, text.encode())
    return []


def one(
    lm: FrozenLM, task: Task, listing: Path, options: dict[str, Any], seed: int, checkpoint: Path
) -> dict[str, Any]:
    """Search on one task, then read the test rows once: without an instruction, with gold ones, and with the choice."""
    given = {**options, "instructions": str(listing), "exhaustive": True}
    made = train(lm, task, "ape", seed=seed, checkpoint=checkpoint, resume=checkpoint.exists(), **given)
    artefact, found = made.artefact, made.artefact.metrics
    gold = given_instructions(str(listing), task.name)[:GOLD]
    base, frame = task.format(lm.kind, chat=lm.instructed), str(options.get("frame", ApeConfig.frame))
    forms = [with_instruction(base, text, lm.kind, frame) for text in ("", *gold)] + [artefact.format]
    values = np.stack(metric_values(lm, task, forms, task.test))
    rows = search_rows(task, seed, artefact.config["proposal_rows"], artefact.config["selection_rows"]).selection
    rows = rows[: found["search"]["chosen_on_rows"]]
    selection = float(metric_values(lm, task, [artefact.format], rows)[0].mean())
    return {
        "task": task.name,
        "metric": task.metric,
        "rows": {"test": len(task.test), "selection": found["search"]["selection_rows"]},
        "search_rows": found["search_rows"],
        "without": bounds(values[0]),
        "gold": bounds(values[1:-1].mean(axis=0)),
        "ape": bounds(values[-1]),
        "chosen": found["search"]["chosen"],
        "source": found["search"]["source"],
        "candidates": found["search"]["candidates"],
        "evaluations": found["search"]["evaluations"],
        "gap": selection - float(values[-1].mean()),
        "exhaustive": found["exhaustive"],
    }


def metric_values(lm: FrozenLM, task: Task, forms: list[Format], rows: Sequence[Row]) -> list[np.ndarray]:
    """The task's metric of each row by the paper's rule, for each format; no answer is worth 0."""
    pairs = [(Artefact(NONE, replace(form), "ape", {}, 0, {}, {}), rows) for form in forms]
    assert task.metric is not None, "the answers of these tasks are texts"
    if task.metric not in METRICS:
        raise DataError(f"The metric of {task.name} is {task.metric}; this recipe has {', '.join(METRICS)}.")
    metric = METRICS[task.metric]
    found = []
    for answered in answer_rows(lm, pairs):
        told = [(one.answer, row.targets) for one, row in zip(answered, rows, strict=True)]
        values = [0.0 if a is NO_ANSWER else max(metric(a, target) for target in targets) for a, targets in told]
        found.append(np.array(values, dtype=np.float64))
    return found


def bounds(values: np.ndarray) -> list[float]:
    """Mean and 95% interval over rows."""
    found: Interval = interval([resample_values({"metric": values})["metric"]])
    return [found.mean, found.low, found.high]


def page(lines: list[dict[str, Any]], lm: FrozenLM) -> str:
    """The table and what it shows, in Markdown."""
    head = [
        "task",
        "metric",
        "no instruction",
        "gold",
        "ape",
        "source",
        "selection - test",
        "Spearman",
        "place",
        "regret",
    ]
    body = [head, ["---"] * len(head)]
    for line in lines:
        whole = line["exhaustive"]
        rank = "-" if whole["spearman"] is None else f"{whole['spearman']:.2f}"
        body.append([
            line["task"], line["metric"].replace("_", " "), *(cell(line[k]) for k in ("without", "gold", "ape")),
            line["source"], f"{100 * line['gap']:+.1f}", rank, f"{whole['choice_rank']} of {line['candidates']}",
            f"{whole['regret']:.3f}",
        ])  # fmt: skip
    grid = "\n".join("| " + " | ".join(row) + " |" for row in body)
    asked = lines[0]["asked"]
    means = {k: 100 * float(np.mean([line[k][0] for line in lines])) for k in ("without", "gold", "ape")}
    ranks = [line["exhaustive"]["spearman"] for line in lines if line["exhaustive"]["spearman"] is not None]
    mean_rank = float(np.mean(ranks)) if ranks else float("nan")
    read = float(np.mean([line["evaluations"] / (line["candidates"] * line["rows"]["selection"]) for line in lines]))
    places = [line["exhaustive"]["choice_rank"] for line in lines]
    first, three = sum(p == 1 for p in places), sum(p <= 3 for p in places)
    least = min(ranks, default=float("nan"))
    embedded = lm.name.startswith("foreword-mini")
    small = " The embedded model has 22 million parameters and hardly follows instructions." if embedded else ""
    invented = sum(line["source"] in ("forward", "insert", "variation", "history") for line in lines)
    told = ", ".join(f"{key}={value}" for key, value in asked["options"].items())
    tests = sorted({line["rows"]["test"] for line in lines})
    chosen = "\n".join(f"- {line['task']}: {line['chosen']}" for line in lines)
    return f"""{START}

Made by `python recipes/instruction_induction.py --seed {asked["seed"]}`: {lm.name}, {len(lines)} tasks of Honovich et
al. (2022), {tests[0]} to {tests[-1]} test rows each; ape with
{told}.

Metrics are in percent with 95% intervals over test rows; gold is the mean over the first {GOLD} gold instructions.
Candidates are gold, seed and proposed instructions and the frame without one, ranked by the likelihood of the answers
on selection rows. Place is that of the budgeted choice when all are read on all of these rows, regret how much mean
log-likelihood a piece it costs, and Spearman compares the budgeted with the exhaustive means.
Texts are compared by the papers' own rule (to the first full stop, without punctuation), which is this recipe's alone.

{grid}

- Means: no instruction {means["without"]:.1f}, gold {means["gold"]:.1f}, ape {means["ape"]:.1f}.
- The budget reads {100 * read:.0f}% of the candidates' cells. Its choice is the best of all on the selection rows in
  {first} of {len(places)} tasks and among the best three in {three}.
- The Spearman correlation is {mean_rank:.2f} on average and {least:.2f} at least.
- {invented} of {len(places)} choices were proposed by the model.
- A higher likelihood of the answers need not raise the metric, and what a model prefers need not be an instruction that
  a person would give.{small}

The instructions chosen:

{chosen}
"""


def cell(value: list[float]) -> str:
    return f"{100 * value[0]:.1f} [{100 * value[1]:.1f}, {100 * value[2]:.1f}]"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/instruction_induction"))
    parser.add_argument("--model", default="foreword-mini-causal")
    parser.add_argument("--only", help="tasks, with commas between them")
    parser.add_argument("--out", type=Path, default=Path("runs/instruction-induction"))
    parser.add_argument("--page", type=Path, help="write the table to this file too: docs/instruction-induction.md")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", type=int, default=20, help="test rows a task")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
