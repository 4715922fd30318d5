"""Prefix tuning on E2E (Li & Liang 2021): expect BLEU 69.7 with --model gpt2-medium --full, on a GPU.

The embedded model is small and uncased, so its own numbers are low and compared as an uncased model writes; what is
asked of it is the paper's order: discrete words < embeddings alone < prefix, with intervals, and prefix against
fine-tuning with few rows.

    python recipes/prefix_tuning_e2e.py --data ../shared/data     every cell that is missing, then the page
    python recipes/prefix_tuning_e2e.py --list                    the cells: table/rows/variant
    python recipes/prefix_tuning_e2e.py --only 'main/*'           some of them
    python recipes/prefix_tuning_e2e.py --quick                   a tiny model and embedded rows: whether it works

Stop it at any time; the same command goes on. Development rows choose the step that is kept; the learning rates were
chosen on development rows too. Test rows are read once a run.
"""

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ending import ended
from prefix_tuning_e2e_page import Cell, page, results

from foreword.core.format import Decoding, Format
from foreword.evaluation.compare import CompareOptions, FailedRun, compare
from foreword.models.base import FrozenLM
from foreword.models.load import load
from foreword.tasks.read import read_task
from foreword.tasks.task import Task

MODEL, DTYPE = "foreword-mini-causal", "bfloat16"
WORDS = "table to text: describe the restaurant in a sentence"
FAR = "elephant divide banana keyboard thirteen violet harbour seldom carpet"
INFIX = "{source|shorten}\n{soft:LENGTH}\nText: {answer}"
SIZES, SUBSETS, SEEDS = (50, 100, 200, 500), (0, 1), (0, 1)
ALL_SEEDS = (0, 1, 2, 3)  # of what the paper's order is tested on: two runs leave an interval of 13 standard errors
LENGTHS = (1, 5, 20, 40)


@dataclass(frozen=True)
class Setting:
    """How a model is trained and written with. `steps` of the main tables, and of those with few rows."""

    steps: int
    few_steps: int
    common: dict[str, Any]
    prefix: dict[str, Any]
    prompt: dict[str, Any]
    tuned: dict[str, Any]
    decoding: Decoding
    development: int = 40
    references: int = 3


OWN = Setting(
    steps=500,
    few_steps=150,
    common={"batch_size": 8, "eval_every": 100, "schedule": "linear", "warmup": 20},
    prefix={"length": 10, "learning_rate": 0.1, "init": "text", "init_text": WORDS},
    prompt={"length": 10, "learning_rate": 0.1, "init": "text", "init_text": WORDS},
    tuned={"learning_rate": 3e-4},
    decoding=Decoding(64, stop_strings=("\n",)),
)
# Table 5 and section 5.3 of the paper: 5 epochs of 42,061 texts in batches of 10, an MLP of 512, beams of 5.
PAPER = Setting(
    steps=21_000,
    few_steps=400,
    common={"batch_size": 10, "eval_every": 2_100, "schedule": "linear", "warmup": 100},
    prefix={"length": 5, "learning_rate": 8e-5, "reparametrise": True, "hidden": 512, "init": "random"},
    prompt={"length": 10, "learning_rate": 0.05},
    tuned={"learning_rate": 5e-5},
    decoding=Decoding(100, num_beams=5, stop_strings=("\n",)),
    development=200,
    references=8,
)
TINY = replace(OWN, steps=2, few_steps=2, common={"batch_size": 2, "eval_every": 2}, development=4)


def setting_of(given: argparse.Namespace) -> Setting:
    if given.quick or given.model.startswith("foreword-"):
        return TINY if given.quick else OWN
    return PAPER if given.full else replace(PAPER, steps=PAPER.steps * given.rows // 4862)


def cells(given: argparse.Namespace) -> list[Cell]:
    """All cells, the main table first."""
    how, rows = setting_of(given), given.rows
    long, few = {**how.common, "steps": how.steps}, {**how.common, "steps": how.few_steps}
    prefix, prompt = {**long, **how.prefix}, {**long, **how.prompt}
    found = [
        Cell("main", rows, "manual", "manual", {}, seeds=SEEDS[:1]),
        Cell("main", rows, "prefix", "prefix-tuning", prefix, seeds=ALL_SEEDS),
        Cell("main", rows, "embeddings", "prompt-tuning", prompt, seeds=ALL_SEEDS),
        Cell("main", rows, "fine-tuning", "fine-tuning", {**long, **how.tuned}, seeds=ALL_SEEDS),
        Cell("main", rows, "infix", "prompt-tuning", prompt, infix=True),
    ]
    for size in given.sizes:
        found += [
            Cell("few", size, "prefix", "prefix-tuning", {**few, **how.prefix, **real(how)}, SUBSETS),
            Cell("few", size, "fine-tuning", "fine-tuning", {**few, **how.tuned}, SUBSETS),
        ]
    for name, start in (("random", {"init": "random"}), ("far words", {"init": "text", "init_text": FAR})):
        options = {**few, **how.prefix, **start}
        found.append(Cell("init", given.sizes[min(1, len(given.sizes) - 1)], name, "prefix-tuning", options, SUBSETS))
    found += [
        Cell("length", rows, f"length {n}", "prefix-tuning", {**prefix, "length": n}, seeds=SEEDS[:1])
        for n in given.lengths
    ]
    return [c for c in found if not given.only or any(fnmatch.fnmatch(c.path, p) for p in given.only)]


def real(how: Setting) -> dict[str, Any]:
    """With few rows the paper starts from real words."""
    return {"init": "text", "init_text": WORDS}


def read(given: argparse.Namespace) -> Task:
    """The task with the development and test rows that every cell shares."""
    how = setting_of(given)
    source = given.source or str(given.data / "e2e_nlg")
    case = "uncased" if given.model.startswith("foreword-") else "lower"
    task = read_task(source, metric="bleu", case=case)
    task = task.limit(train=None, validation=how.development, test=given.test_rows)
    development = tuple(replace(row, targets=row.targets[: how.references]) for row in task.validation)
    return task.with_(validation=development)


def form_of(cell: Cell, how: Setting) -> Any:
    def form(lm: FrozenLM, task: Task) -> Format:
        template = INFIX.replace("LENGTH", str(cell.options["length"])) if cell.infix else None
        return task.format(lm.kind, template, decoding=how.decoding)

    return form


def run(given: argparse.Namespace, chosen: Sequence[Cell]) -> list[FailedRun]:
    """Run what is missing, run by run."""
    lm, task, how = load(given.model, dtype=given.dtype), read(given), setting_of(given)
    failures: list[FailedRun] = []
    for number, cell in enumerate(chosen, 1):
        print(f"{number} of {len(chosen)}: {cell.path}", file=sys.stderr, flush=True)
        for subset in cell.subsets:
            drawn = task if cell.rows is None else task.limit(train=cell.rows, test=None, seed=subset)
            found = compare(
                lm,
                drawn,
                [cell.method],
                out=given.out / cell.path / f"subset-{subset}",
                seeds=cell.seeds,
                options={cell.method: cell.options},
                how=CompareOptions(keep_bytes=1 << 20, form=form_of(cell, how)),
            )
            failures += found.failures
    return failures


def told(given: argparse.Namespace) -> str:
    """How the runs are made, for the page."""
    how = setting_of(given)
    written = "greedy" if how.decoding.num_beams == 1 else f"beams of {how.decoding.num_beams}"
    return (
        f"{given.model}, {given.dtype}, {how.steps} steps of {how.common['batch_size']} texts ({how.few_steps} with "
        f"few rows), the step kept that has the best loss on {how.development} development sources with at most "
        f"{how.references} texts each; {written}, at most {how.decoding.max_new_tokens} pieces."
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder with e2e_nlg")
    parser.add_argument("--out", type=Path, help="the folder of results [runs/e2e-MODEL]")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="cells, as table/rows/variant")
    parser.add_argument("--list", action="store_true", help="print the cells and stop")
    parser.add_argument("--page", action="store_true", help="run nothing; make the page of what is there")
    parser.add_argument("--quick", action="store_true", help="a tiny model, an embedded task, two steps")
    parser.add_argument("--full", action="store_true", help="all 4,862 training sources instead of 2,000")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", default=DTYPE, help=f"of the model; learnt numbers are fp32 [{DTYPE}]")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch [1]")
    parser.add_argument("--test-rows", type=int, help="so many test sources instead of all 630")
    parser.add_argument("--write", type=Path, default=Path("docs/e2e.md"), help="the page")
    given = parser.parse_args(arguments)
    kept = {"--full": given.full, "--quick": given.quick, f"--model {given.model}": given.model != MODEL}
    kept |= {
        f"--test-rows {given.test_rows}": given.test_rows is not None,
        f"--dtype {given.dtype}": given.dtype != DTYPE,
    }
    given.said = [option for option, said in kept.items() if said]
    given.rows, given.sizes, given.lengths, given.source = None if given.full else 2000, SIZES, LENGTHS, None
    if given.quick:
        given.model, given.dtype, given.source = "foreword-tiny-causal", "float32", "builtin:listings"
        given.rows, given.sizes, given.lengths, given.test_rows = 8, (4,), (1,), 6
    given.out = given.out or Path("runs") / ("e2e-quick" if given.quick else f"e2e-{given.model.replace('/', '-')}")
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    chosen = cells(given)
    if given.list or not chosen:
        print("\n".join(c.path for c in chosen) or f"no cell fits {', '.join(given.only)}")
        return 0 if chosen else 2
    return ended(given.out, lambda: run_all(given, chosen), given.threads)


def run_all(given: argparse.Namespace, chosen: list[Cell]) -> list[FailedRun]:
    """What is missing, unless the page alone is asked for; then the page of all that is there."""
    failures = [] if given.page else run(given, chosen)
    given.only = []
    wanted = cells(given)
    found = results(given.out, wanted)
    if found:
        command = " ".join(["python recipes/prefix_tuning_e2e.py", *given.said])
        given.write.write_text(page(found, wanted, read(given), told(given), command), encoding="utf-8")
    print(f"{given.write} is made of {len(found)} cells" if found else f"{given.out} has no run yet")
    return failures


if __name__ == "__main__":
    sys.exit(main())
