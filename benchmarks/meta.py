"""Meta-gradients of prompts at BERT-base shape: memory over inner steps, second against first order, tokens, clones.

    python -m benchmarks.meta                       every cell that has no result yet, then META.md
    python -m benchmarks.meta --list                the cells and whether they are done
    python -m benchmarks.meta --only tokens/1,time/1 --again

memory: peak of a process at 20 inner steps over that at 1 (at most 1.15), and of one graph, at 8 over 1 (it must grow).
time/1, time/5: seconds of exact second order over those of first order, 5 inner steps, 75 queries (at most 1.6, 2.3).
tokens/1, tokens/5: tokens that go through the model in a meta-step, counted there, against the published schedule on
the same rows (at least 20 times fewer). clone: seconds of a copy of the model a task over ours, once the gradients
agree.

Stop it at any time; the same command goes on. The last line printed is JSON.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.parts import cells, cloned, measure, shapes
from foreword.methods.meta.episode_rows import EpisodeRows
from foreword.methods.meta.inner_loop import Product, product
from foreword.methods.meta.meta_gradient import meta_gradient, spread, unrolled, weights_of
from foreword.methods.meta.task_losses import EpisodeRow, PromptLoss, Shape
from foreword.models.base import FrozenLM
from foreword.tasks.episodes import EpisodeSource
from foreword.tasks.task import Task

NAMES = ["memory", "time/1", "time/5", "tokens/1", "tokens/5", "clone"]
TARGETS = {"memory": 1.15, "time/1": 1.6, "time/5": 2.3, "tokens/1": 20.0, "tokens/5": 20.0, "clone": 1.0}
AT_MOST = ("memory", "time/1", "time/5")
LABELS = ("politics", "travel", "food", "sports", "crime")
TEMPLATE = "{soft:8} {text|shorten} topic : {mask} ."
PAPER = "{text|shorten} , {soft:1} topic is {mask} ."  # with one learnt vector, as the paper's first template
PUBLISHED = {"steps": 3, "queries": 16, "columns": 512}  # inner steps, query rows a pass, columns a row
TOLERANCE = 1e-3  # of the largest number of the gradient
HEAD = """# Meta-gradients of prompts

Written by `python -m benchmarks.meta`: BERT-base shape with random weights, float32, rows of HuffPost's lengths, five
classes, meta-batches of {tasks} tasks with 75 query rows each.

- memory: peak of a process at {many} inner steps over that at one, exact second order; beside it the growth of the step
  alone, and that of one graph of all inner steps, at {graph} over one.
- time/1, time/5: seconds of exact second order over those of first order, 1 and 5 shots, {steps} inner steps.
- tokens/1, tokens/5: tokens that enter the model in a meta-step of the published algorithm, ours counted as they enter,
  theirs by the published schedule on the same rows.
- clone: seconds of a copy of the model for every task over ours, once the gradients agree.

| cell | machine | ratio | goal | |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Setting:
    """What every cell is run with."""

    full: str = "FULL"
    dtype: str = "float32"
    rows: str = ""
    tasks: int = 2
    steps: int = 5
    queries: int = 15
    many: int = 20
    graph: int = 8
    pairs: int = 3
    rate: float = 0.1


QUICK = {"full": "SMOKE", "queries": 2, "pairs": 3}


@dataclass(frozen=True, eq=False)
class Case:
    """A model, the rows of a meta-batch, and the losses over them."""

    model: Any
    lm: FrozenLM
    support: list[EpisodeRow]
    query: list[EpisodeRow]
    tasks: int
    start: dict[str, torch.Tensor]
    rates: dict[str, torch.Tensor]

    def loss(self, rows: Sequence[EpisodeRow]) -> PromptLoss:
        return PromptLoss(self.lm, self.lm.second_order(), Shape("soft"), rows, self.tasks, self.lm.batch_tokens)


def case_of(setting: Setting, shots: int, template: str = TEMPLATE) -> Case:
    """Rows of HuffPost's lengths under five labels of one piece each."""
    shape = getattr(shapes, setting.full)["bert"]
    model = shapes.build(replace(shape, spread=max(shape.spread, 0.03)), getattr(torch, setting.dtype), "cpu")
    model.set_attn_implementation("eager")  # for the clones, which differentiate twice
    lm = shapes.wrapped(model)
    texts = headlines(Path(setting.rows) if setting.rows else None, 5 * (setting.queries + shots) * 8)
    records = [{"text": text, "label": LABELS[i % 5]} for i, text in enumerate(texts)]
    task = Task(train=records, test=[{"text": "none of these", "label": LABELS[0]}], text="text", template=template,
                labels=LABELS)  # fmt: skip
    task = task.with_(train=task.train + task.validation, validation=())
    source = EpisodeSource((task,), 5, shots, setting.queries)
    deck = EpisodeRows(lm, source, [task.format("masked")])
    episodes = source.episodes("train", 0, setting.tasks)
    draw = torch.Generator().manual_seed(0)
    length = int(max(row.slot_S.max() for row in deck.rows("train", 0))) + 1
    start = 0.5 * torch.randn(length, lm.dims.width, generator=draw)
    return Case(
        model, lm, deck.folds("train", episodes, ("support",)), deck.folds("train", episodes, ("query",)),
        setting.tasks, {"embed": start}, {"embed": torch.full((1, 1, 1), setting.rate)},
    )  # fmt: skip


def headlines(file: Path | None, count: int) -> list[str]:
    """Different texts: HuffPost's own, or made up with as many words (11.5 on average)."""
    rng = np.random.default_rng(0)
    if file is not None and file.exists():
        lines = file.read_text(encoding="utf-8").splitlines()
        return [json.loads(lines[i])["text"] for i in rng.choice(len(lines), count, replace=False)]
    return [" ".join([*rng.choice(shapes.WORDS, rng.integers(6, 17)), str(i)]) for i in range(count)]


def gradient_of(case: Case, steps: int, times: Product | None, multi_step: bool = False) -> torch.Tensor:
    start = spread(case.start, case.tasks)
    weights = weights_of(steps, 0.0, multi_step)
    support, query = case.loss(case.support), case.loss(case.query)
    return meta_gradient(support, query, start, case.rates, weights, times).start["embed"]


def graph_of(case: Case, steps: int) -> torch.Tensor:
    start = spread(case.start, case.tasks)
    weights = weights_of(steps, 0.0, False)
    return unrolled(case.loss(case.support), case.loss(case.query), start, case.rates, weights).start["embed"]


def peak(setting: Setting, how: str, steps: int) -> dict[str, float]:
    """The high-water mark of this process over one meta-step, and what it was before."""
    case = case_of(setting, 1)
    measure.reset_high_water("cpu")
    before = measure.high_water("cpu")
    if how == "graph":
        graph_of(case, steps)
    else:
        gradient_of(case, steps, product)
    return {"bytes": measure.high_water("cpu"), "before": before}


def memory(setting: Setting) -> dict[str, Any]:
    """Peaks of fresh processes; of the step alone too, since the model is most of a process."""
    found: dict[str, Any] = {}
    for name, how, steps in (
        ("one", "chain", 1), ("many", "chain", setting.many), ("graph_one", "graph", 1),
        ("graph", "graph", setting.graph),
    ):  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.meta", "--peak", how, "--steps", str(steps)]
        told = json.dumps({**asdict(setting), "threads": torch.get_num_threads()})
        done = subprocess.run([*command, "--setting", told], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"measuring the memory of {how} with {steps} steps failed:\n{done.stderr[-2000:]}")
        found[name] = json.loads(done.stdout.splitlines()[-1])
    step = {name: value["bytes"] - value["before"] for name, value in found.items()}
    return {
        **found, "ratio": found["many"]["bytes"] / found["one"]["bytes"], "step_ratio": step["many"] / step["one"],
        "graph_ratio": step["graph"] / step["graph_one"],
    }  # fmt: skip


def in_turn(pairs: int, one: Callable[[], Any], other: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of both, one after the other, and the median ratio with a bootstrap interval; a first pair warms up."""
    seconds: list[list[float]] = [[], []]
    for number in range(pairs + 1):
        for side, work in enumerate((one, other)):
            began = time.perf_counter()
            work()
            if number:
                seconds[side].append(time.perf_counter() - began)
    ratios = np.array(seconds[0]) / np.array(seconds[1])
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high), "seconds": seconds}


def timed(setting: Setting, shots: int) -> dict[str, Any]:
    case = case_of(setting, shots)
    exact, first = (gradient_of(case, setting.steps, times) for times in (product, None))
    apart = float((exact - first).abs().max() / exact.abs().max())
    if not apart > 0:
        return {"void": "second and first order are the same numbers, so nothing was differentiated twice"}
    return {"apart": apart} | in_turn(
        setting.pairs,
        lambda: gradient_of(case, setting.steps, product),
        lambda: gradient_of(case, setting.steps, None),
    )


def tokens(setting: Setting, shots: int) -> dict[str, Any]:
    """Tokens that enter the model in a meta-step of one task, with the published algorithm's three inner steps and its
    query loss after each, second order included, against the published schedule. The count does not depend on the
    model's size, so a small one is read."""
    case = case_of(replace(setting, tasks=1, full="SMOKE", queries=15), shots, PAPER)
    counted = 0

    def count(module: Any, args: Any, keywords: dict[str, Any]) -> None:
        nonlocal counted
        counted += keywords["inputs_embeds"].shape[0] * keywords["inputs_embeds"].shape[1]

    handle = case.lm._base.register_forward_pre_hook(count, with_kwargs=True)  # pyright: ignore
    gradient_of(case, PUBLISHED["steps"], product, multi_step=True)
    handle.remove()
    theirs = published(len(case.support), len(case.query))
    return {"ours": counted, "theirs": theirs, "ratio": theirs / counted}


def published(support: int, query: int) -> int:
    """For every pass of query rows the inner loop again, each step on 5 rows or a third of 25, and a reading of the
    query after each step; all rows padded to 512 (MetaPrompting.py of the authors' repository)."""
    steps, columns = PUBLISHED["steps"], PUBLISHED["columns"]
    passes = -(-query // PUBLISHED["queries"])
    step = support if support <= 5 else support // steps
    return (passes * steps * step + steps * query) * columns


def clone(setting: Setting) -> dict[str, Any]:
    case = case_of(setting, 1)

    def theirs() -> torch.Tensor:
        return torch.stack(
            cloned.meta_gradient(
                case.model, case.support, case.query, case.start["embed"], setting.rate, setting.steps, case.tasks
            )
        )

    gap = float((theirs() - gradient_of(case, setting.steps, product)).abs().max())
    gap /= float(theirs().abs().max())
    if not gap <= TOLERANCE:
        return {"gap": gap, "void": "the gradients disagree"}
    return {"gap": gap} | in_turn(setting.pairs, theirs, lambda: gradient_of(case, setting.steps, product))


def measured(name: str, setting: Setting) -> dict[str, Any]:
    kind, _, shots = name.partition("/")
    if kind == "memory":
        return memory(setting)
    if kind == "clone":
        return clone(setting)
    return timed(setting, int(shots)) if kind == "time" else tokens(setting, int(shots))


def short(record: dict[str, Any]) -> dict[str, Any]:
    if "void" in record:
        return {"void": record["void"]}
    name, ratio = record["cell"], record["ratio"]
    reached = ratio <= TARGETS[name] if name in AT_MOST else ratio >= TARGETS[name]
    if name == "memory":
        reached = reached and record["graph_ratio"] > 1.5
    return {"ratio": round(ratio, 3), "wanted": TARGETS[name], "reached": bool(reached)}


def render(records: Sequence[dict[str, Any]]) -> str:
    """The document: a line a cell."""
    lines = []
    for r in sorted(records, key=lambda r: NAMES.index(r["cell"])):
        place, name = f"{r['machine']['device']}, {r['machine']['threads']} thread(s)", r["cell"]
        told = short(r)
        if "void" in told:
            lines.append(f"| {name} | {place} | | | void: {told['void']} |")
            continue
        ratio = f"{r['ratio']:.2f}" + (f" [{r['low']:.2f}, {r['high']:.2f}]" if "low" in r else "")
        more = {
            "memory": lambda r: f"step alone {r['step_ratio']:.2f}, one graph {r['graph_ratio']:.2f}",
            "tokens": lambda r: f"{r['ours']:,} for {r['theirs']:,}",
            "clone": lambda r: f"largest difference {r['gap']:.1e}",
        }.get(name.partition("/")[0], lambda r: "")(r)
        wanted = f"{'at most' if name in AT_MOST else 'at least'} {TARGETS[name]:g}"
        lines.append(f"| {name} | {place} | {ratio} | {wanted}: {'yes' if told['reached'] else '**no**'} | {more} |")
    setting = next((r["setting"] for r in records if r["cell"] == "memory"), asdict(Setting()))
    return HEAD.format(**setting) + "\n".join(lines) + "\n"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = cells.options(
        "meta", __doc__, "tiny models", "../shared/data/huffpost/all.jsonl", "META.md", "runs/bench-meta"
    )
    parser.add_argument("--tasks", type=int, default=0, help="tasks of a meta-batch (0: 2)")
    parser.add_argument("--pairs", type=int, default=0, help="pairs of meta-steps to time (0: 3)")
    parser.add_argument("--peak", choices=("chain", "graph"), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--setting", default="", help=argparse.SUPPRESS)
    return cells.parsed(parser, arguments, NAMES)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    given = parse(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries measured
        if given.peak:
            told = json.loads(given.setting)
            torch.set_num_threads(told.pop("threads"))
            found = peak(Setting(**told), given.peak, given.steps)
            print(json.dumps(found))
            return found
        return every(given)


def every(given: argparse.Namespace) -> dict[str, Any]:
    setting = replace(Setting(rows=given.rows), **(QUICK if given.quick else {}))
    told = {"tasks": given.tasks, "pairs": given.pairs}
    setting = replace(setting, **{name: value for name, value in told.items() if value})
    folder = given.out / ("quick" if given.quick else "full")
    return cells.run(
        "meta",
        given,
        folder,
        lambda name: {"setting": asdict(setting), "machine": measure.machine("cpu"), **measured(name, setting)},
        short,
        lambda: render(cells.results(given.out, folder.name, given.quick)),
    )


if __name__ == "__main__":
    main()
