"""MetaPrompting on Reuters, HuffPost and HWU64, and across tasks in rotation, with every control that a claim needs.

Expect adapted starts above their zero-step accuracy; whether MAML beats a multi-task start is what the table tells, and
"not shown" is an answer (docs/metaprompting.md). The authors' corrected averages over four data sets, with the model
tuned as well, are 79.6 (1 shot) and 83.9 (5 shots); they are of other episodes and not to be compared.

    python recipes/metaprompting.py                          every cell that is missing, then the tables
    python recipes/metaprompting.py --list                   the cells: classes/DATA/SHOTS/START/SEED, tasks/...
    python recipes/metaprompting.py --only 'classes/hwu64/1/*'
    python recipes/metaprompting.py --table                  train nothing: the tables of what is there
    python recipes/metaprompting.py --quick                  a tiny model and two steps: whether it works

Stop it at any time; the same command goes on. Across tasks, rows whose text is in a later split of any task are left
out. Settings were not tuned on test classes: rates of adaptation are chosen on 20 validation episodes, from one list
for every arm. Texts are cut to 128 tokens.
"""

import argparse
import fnmatch
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ending import ended
from markers import put
from metaprompting_words import WORDS

from foreword.cli.progress import Bars
from foreword.core.artefact import Artefact
from foreword.core.files import write_whole
from foreword.core.format import Format
from foreword.errors import ForewordError
from foreword.evaluation.compare import FailedRun
from foreword.evaluation.episode_comparison import EpisodeArm, Protocol, measure_arms
from foreword.evaluation.episode_report import EpisodeLine, lines_of, markdown, over, percent
from foreword.methods.registry import make_job
from foreword.models.base import FrozenLM
from foreword.models.load import load
from foreword.tasks.class_splits import SPLITS, plain, read_classes
from foreword.tasks.episodes import EpisodeSource, joined
from foreword.tasks.read import read_task
from foreword.tasks.task import Task
from foreword.training.trainer import train_many

DATA = {"reuters": 128, "huffpost": 64, "hwu64": 64}  # tokens of a row at most, prompt included; 128 is the protocol's
SPLIT = "metaprompter2023"
SHOTS = (1, 5)
# Tasks by family; a family is left out whole.
FAMILIES = {
    "sentiment": ("sst2",), "questions": ("trec",), "news": ("ag_news",), "entailment": ("sick", "rte"),
    "intents": ("hwu64",),
}  # fmt: skip
STARTS: dict[str, dict[str, Any]] = {
    "maml": {"algorithm": "maml"},
    "fomaml": {"algorithm": "fomaml"},
    "reptile": {"algorithm": "reptile"},
    "multitask": {"algorithm": "multitask"},
    "vocabulary": {"algorithm": "vocabulary"},
    "pool": {"algorithm": "maml", "pool": 8},
}
# The four plain initialisations, as they are and after meta-training from them: their spread is the method's reason.
PLAIN: dict[str, dict[str, Any]] = {
    "plain-vocabulary": {"init": "vocabulary"},
    "plain-uniform": {"init": "uniform"},
    "plain-labels": {"init": "labels"},
    "plain-text": {"init": "text", "init_text": "what is this text about"},
}
SPREAD = {
    **{name: {"algorithm": "vocabulary", **options} for name, options in PLAIN.items()},
    **{name.replace("plain", "maml-from"): {"algorithm": "maml", **options} for name, options in PLAIN.items()},
}
ACROSS = ("maml", "multitask", "vocabulary")
TRAINING = {"length": 8, "batch_size": 2, "queries": 5, "inner_steps": 5, "steps": 100, "eval_every": 20}
MASKED, DTYPE = "foreword-mini", "bfloat16"


@dataclass(frozen=True)
class Cell:
    """One start: where its episodes are from (a data set by classes, or all families but one), and its seed."""

    kind: str
    name: str
    shots: int
    start: str
    seed: int

    @property
    def path(self) -> str:
        return f"{self.kind}/{self.name}/{self.shots}/{self.start}/{self.seed}"

    @property
    def question(self) -> tuple[str, str, int]:
        return self.kind, self.name, self.shots

    def options(self) -> dict[str, Any]:
        return {**TRAINING, **{**STARTS, **SPREAD}[self.start], "shots": self.shots}


def cells(patterns: list[str], seeds: int) -> list[Cell]:
    """The cells whose path fits one of the patterns."""
    every = [
        Cell("classes", name, shots, start, seed)
        for name in DATA
        for shots in SHOTS
        for start in (*STARTS, *SPREAD)
        for seed in range(seeds if start in STARTS else 1)
    ]
    every += [
        Cell("tasks", family, shots, start, seed)
        for family in FAMILIES
        for shots in SHOTS
        for start in ACROSS
        for seed in range(seeds)
    ]
    return [c for c in every if not patterns or any(fnmatch.fnmatch(c.path, p) for p in patterns)]


class Bench:
    """The data and the model of a run of this recipe, read once."""

    def __init__(self, given: argparse.Namespace):
        self.given = given
        self._models: dict[str, FrozenLM] = {}
        self._tasks: dict[str, Task] = {}

    @property
    def learning(self) -> FrozenLM:
        """What starts are learnt with: second derivatives need single precision."""
        return self._load("float32")

    @property
    def asked(self) -> FrozenLM:
        """What starts adapt and answer with."""
        return self._load(self.given.dtype)

    def _load(self, dtype: str) -> FrozenLM:
        if dtype not in self._models:
            self._models[dtype] = load("foreword-tiny" if self.given.quick else MASKED, dtype=dtype)
        return self._models[dtype]

    def task(self, name: str, read: Callable[[Path], Task]) -> Task:
        key = f"{name} {read}"
        if key not in self._tasks:
            self._tasks[key] = read(self.given.data / name)
        return self._tasks[key]

    def by_classes(self, name: str) -> dict[str, Task]:
        return {name: self.task(name, split_of)}

    @cached_property
    def _families(self) -> dict[str, Task]:
        return no_text_twice({task: self.task(task, read_worded) for tasks in FAMILIES.values() for task in tasks})

    def families(self, names: list[str]) -> dict[str, Task]:
        return {task: self._families[task] for name in names for task in FAMILIES[name]}

    def trained_on(self, cell: Cell) -> dict[str, Task]:
        if cell.kind == "classes":
            return self.by_classes(cell.name)
        return self.families([name for name in FAMILIES if name != cell.name])

    def tested_on(self, question: tuple[str, str, int]) -> dict[str, Task]:
        kind, name, _ = question
        return self.by_classes(name) if kind == "classes" else self.families([name])

    def form(self, task: Task) -> Format:
        return task.format("masked", max_length=DATA.get(task.name, 128))

    def folder(self, cell: Cell) -> Path:
        return self.given.out / "starts" / cell.path.replace("/", "-")


def split_of(folder: Path) -> Task:
    return worded(read_classes(folder, SPLIT))


def worded(task: Task) -> Task:
    """The task with label words of one piece, where its class names are none."""
    words = WORDS.get(task.name, {})
    own = {label: (words[label],) for label in task.labels if label in words}
    return task.with_(label_words={**(task.label_words or {}), **own}) if own else task


def read_worded(folder: Path) -> Task:
    return worded(read_task(folder))


def no_text_twice(tasks: dict[str, Task]) -> dict[str, Task]:
    """The tasks without the rows whose text, letters and digits alone compared, is in a later split of any of them."""
    later: set[str] = set()
    for split in reversed(SPLITS):
        here = {name: [(plain(row), row) for row in task.rows(split)] for name, task in tasks.items()}
        kept = {name: tuple(row for text, row in rows if text not in later) for name, rows in here.items()}
        if gone := {name: len(rows) - len(kept[name]) for name, rows in here.items() if len(rows) > len(kept[name])}:
            told = ", ".join(f"{count} of {name}" for name, count in gone.items())
            print(f"{split} rows left out, since a later split has their text: {told}", file=sys.stderr)
        tasks = {name: task.with_(**{split: kept[name]}) for name, task in tasks.items()}
        later |= {text for rows in here.values() for text, _ in rows}
    return tasks


def make_start(bench: Bench, cell: Cell) -> Artefact:
    """A start, trained unless it is there; a stopped one goes on from its checkpoint."""
    folder = bench.folder(cell)
    if (folder / "foreword.json").exists():
        return Artefact.load(folder)
    tasks = bench.trained_on(cell)
    options = cell.options()
    if bench.given.steps:
        options["steps"] = bench.given.steps
    if bench.given.quick:
        options |= {"steps": 2, "length": 2, "queries": 2, "inner_steps": 1, "eval_every": 2, "validation_episodes": 2}
    family = [*tasks.values()] if cell.kind == "tasks" else []
    task = joined(tasks, f"all-but-{cell.name}") if family else next(iter(tasks.values()))
    form = bench.form(family[0] if family else task)
    job = make_job(bench.learning, task, "metaprompting", options=options, seed=cell.seed, form=form, family=family)
    checkpoint = folder.with_name(f"{folder.name}.checkpoint")
    with Bars() as bars:
        [made] = train_many(bench.learning, [job], progress=bars, checkpoint=checkpoint, resume=True)
    if isinstance(made, ForewordError):
        raise made
    made.artefact.save(folder)
    return made.artefact


def protocol_of(given: argparse.Namespace) -> Protocol:
    if given.quick:
        return Protocol(episodes=given.episodes, validation=2, steps=1, rates=(0.1,), fine_tuning_rates=(1e-4,))
    return Protocol(episodes=given.episodes, validation=20)


def lines(bench: Bench, question: tuple[str, str, int], chosen: list[Cell]) -> tuple[list[EpisodeLine], str]:
    """What the starts of one question are worth, with the arms that need none; what was measured is not again."""
    starts = [(cell, make_start(bench, cell)) for cell in chosen]
    tasks = [*bench.tested_on(question).values()]
    source = EpisodeSource(tuple(tasks), ways=5, shots=question[2], queries=2 if bench.given.quick else 15)
    plain = [cell.start in SPREAD for cell, _ in starts]
    arms = [EpisodeArm(c.start, "zero-step", s) for (c, s), p in zip(starts, plain, strict=True) if not p]
    arms += [EpisodeArm(c.start, "adapted", s) for c, s in starts]
    if any(not p for p in plain):
        arms += [EpisodeArm("prototypes", "prototypes"), EpisodeArm("fine-tuning", "fine-tuning")]
    out = bench.given.out / "episodes" / "-".join(map(str, question))
    found = measure_arms(
        bench.asked, source, [bench.form(t) for t in tasks], arms, protocol_of(bench.given), out=out,
        tell=lambda text: print(f"{'/'.join(map(str, question))}: {text}", file=sys.stderr),
    )  # fmt: skip
    what = over(source, "test")
    return lines_of(found, what), what


def spread_of(found: list[EpisodeLine]) -> str:
    """The range over the four plain initialisations, as they are and after meta-training from each."""
    told = []
    for text, prefix in (("as they are", "plain"), ("after MAML from each", "maml-from")):
        some = [line for line in found if line.arm.startswith(prefix)]
        if len(some) == len(PLAIN):
            values = [100 * line.accuracy.mean for line in some]
            each = "; ".join(f"{line.arm.removeprefix(prefix + '-')} {percent(line.accuracy)}" for line in some)
            told.append(f"- {text}: {max(values) - min(values):.1f} points ({each})")
    return "\nSpread over the four plain initialisations, adapted:\n\n" + "\n".join(told) if told else ""


def section(given: argparse.Namespace, question: tuple[str, str, int], found: list[EpisodeLine], what: str) -> str:
    """The tables of one question."""
    kind, name, shots = question
    title = f"{name}, 5-way" if kind == "classes" else f"left out: {name}, up to 5-way"
    main = [line for line in found if line.arm not in SPREAD]
    table = markdown(main, what, given.episodes) if main else ""  # type: ignore[arg-type]
    return f"## {title}, {shots}-shot\n\n{table}\n{spread_of(found)}".strip()


def page(given: argparse.Namespace) -> str:
    """The tables of all questions that were asked, with how they were made."""
    steps = given.steps or TRAINING["steps"]
    parts = [
        f"Made by `python recipes/metaprompting.py`: {MASKED}, {steps} steps in float32, adapted in {given.dtype}; "
        f"classes split as {SPLIT}, label words of one piece. A difference is paired on the same episodes and seeds; "
        "without an interval above 0 it is not shown.",
    ]
    for question in dict.fromkeys(cell.question for cell in cells([], given.seeds)):
        file = section_file(given, question)
        parts += [file.read_text(encoding="utf-8")] if file.exists() else []
    return "\n\n".join(parts) + "\n"


def section_file(given: argparse.Namespace, question: tuple[str, str, int]) -> Path:
    return given.out / "tables" / f"{'-'.join(map(str, question))}.md"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder with reuters, trec, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/metaprompting"), help="the folder of results")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="cells, as --list names them")
    parser.add_argument("--list", action="store_true", help="print the cells and whether they are done, and stop")
    parser.add_argument("--table", action="store_true", help="train nothing: the tables of what is there")
    parser.add_argument("--quick", action="store_true", help="a tiny model, two steps, two query rows a class")
    parser.add_argument("--episodes", type=int, default=200, help="test episodes [200; 600 with a GPU]")
    parser.add_argument("--seeds", type=int, default=3, help="meta-training seeds [3; 5 with a GPU]")
    parser.add_argument("--steps", type=int, help=f"meta-training steps [{TRAINING['steps']}]")
    parser.add_argument("--dtype", help=f"of the model that adapts and answers; starts are learnt in float32 [{DTYPE}]")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--write", type=Path, help="the page with the tables [docs/metaprompting.md]")
    given = parser.parse_args(arguments)
    given.dtype = given.dtype or ("float32" if given.quick else DTYPE)
    given.write = given.write or (given.out / "table.md" if given.quick else Path("docs/metaprompting.md"))
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    chosen = cells(given.only, given.seeds)
    bench = Bench(given)
    if given.list or not chosen:
        for cell in chosen:
            print(cell.path, "done" if (bench.folder(cell) / "foreword.json").exists() else "")
        return 0 if chosen else 2
    return ended(given.out, lambda: run(bench, chosen), given.threads)


def run(bench: Bench, chosen: list[Cell]) -> list[FailedRun]:
    """Every question that a chosen cell belongs to, and the page, which is also printed."""
    given = bench.given
    for question in dict.fromkeys(cell.question for cell in chosen):
        every = [cell for cell in cells([], given.seeds) if cell.question == question]
        there = [cell for cell in every if (bench.folder(cell) / "foreword.json").exists()]
        asked = there if given.table else [cell for cell in every if cell in chosen or cell in there]
        if asked:
            found, what = lines(bench, question, asked)
            write_whole(section_file(given, question), section(given, question, found, what).encode())
            # As far as it is: a stop loses no table.
            put(given.write, "metaprompting", page(given), "MetaPrompting")
    print(page(given))
    return []


if __name__ == "__main__":
    sys.exit(main())
