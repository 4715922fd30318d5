"""The card of the embedded model: what its weights are worth, beside those that it began from.

    python recipes/embedded_model_card.py                 what is missing in runs/embedded-model-card, then the card
    python recipes/embedded_model_card.py --model runs/embedded-model/model --write runs/card.md
    python recipes/embedded_model_card.py --quick         few rows, one seed: whether it works

A quarter of an hour of one core for each of the two; stop it at any time, the same command goes on. Expect more right
pieces, lower perplexity and more facts than before, and hand-written prompts that are no better: see LOG.md.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from embedded_model import read_model, weights_sha
from embedded_model_losses import hidden_at, measure
from embedded_model_text import CLS, MASK, Batch, stream_of
from ending import ended
from markers import put
from real_data import Cell
from transformers import AutoTokenizer, BertForMaskedLM

from foreword.cli.progress import Bars
from foreword.core.files import write_whole
from foreword.errors import ForewordError
from foreword.evaluation import facts
from foreword.evaluation.compare import CompareOptions, FailedRun, compare
from foreword.evaluation.report import percent
from foreword.evaluation.statistics import Interval
from foreword.models.base import FrozenLM
from foreword.models.hf.loading import EMBEDDED
from foreword.models.load import load
from foreword.tasks.read import read_task
from foreword.tasks.relations import read_facts

TASKS = ("sst2", "trec", "ag_news", "hwu64")
SHOTS = {"hwu64": 13}  # instead of 16: one of its labels has 27 training rows, and as many are for development
SENTENCES = (
    "Paris is a city in [MASK].",
    "The capital of Italy is [MASK].",
    "She plays the [MASK] in an orchestra.",
    "He went to the [MASK] to buy some bread.",
    "Water freezes when it is very [MASK].",
    "The opposite of black is [MASK].",
    "A [MASK] is a large animal with a trunk.",
    "They speak [MASK] in Brazil.",
    "The president lives in the white [MASK].",
    "In winter the lake is covered with [MASK].",
    "My brother's daughter is my [MASK].",
    "The film was so boring that we [MASK] before the end.",
    "It was a wonderful film. I [MASK] it.",
    "What time does the train to London [MASK]?",
    "Please turn off the [MASK] in the kitchen.",
    "The heart pumps [MASK] through the body.",
    "The bank raised its interest [MASK] again.",
    "The team won the match by two [MASK].",
    "Python is a programming [MASK].",
    "If it rains tomorrow, take an [MASK].",
)
OPENINGS = (
    "The capital of France is",
    "Once upon a time there was a little girl who",
    "In 1914 the war began when",
    "To make bread you need flour,",
    "How can I book a table? Assistant:",
)


class Worth:
    """What one folder of weights is worth; each part is measured once and kept by the hash of the weights."""

    def __init__(self, given: argparse.Namespace, folder: Path):
        self.given, self.folder = given, folder
        self.sha = weights_sha(folder)
        self._out = given.out / self.sha[:12]
        self._lms: dict[str, FrozenLM] = {}

    @cached_property
    def _model(self) -> BertForMaskedLM:
        return read_model(self.folder, torch.float32, torch.device("cpu"))

    def _lm(self, kind: str) -> FrozenLM:
        if kind not in self._lms:
            self._lms[kind] = load(self.folder, kind=kind, dtype="bfloat16")
        return self._lms[kind]

    @torch.no_grad()
    def _best(self, ids: list[int], place: int, causal: bool, count: int) -> Any:
        """The likeliest pieces at one place of a row, with their logits."""
        batch = Batch(torch.tensor([ids]), torch.tensor([place]), torch.tensor([0]), causal)
        return self._model.cls.predictions.decoder(hidden_at(self._model, batch))[0].topk(count)

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        file = self._out / f"{name}.json"
        if not file.exists():
            print(f"{self.folder}: {name}", file=sys.stderr)
            write_whole(file, json.dumps(make(), ensure_ascii=False, indent=1).encode())
        return json.loads(file.read_text(encoding="utf-8"))

    def losses(self) -> dict[str, Any]:
        given = self.given
        return self._kept("losses", lambda: measure(self._model, stream_of(given.valid, given.out), given.rows))

    def accuracy(self, kind: str, task: str, method: str, shots: int | None = None, **options: Any) -> Interval:
        """On at most 1,000 test rows."""
        name = "-".join(map(str, (kind, task, method, shots or 0, *options.values())))

        def make() -> dict[str, Any]:
            rows = read_task(self.given.data / task).limit(train=None, validation=None, test=self.given.test)
            with Bars() as bars:
                found = compare(
                    self._lm(kind), rows, [method], out=self._out / "runs" / name,
                    seeds=self.given.seeds if shots else 1, shots=shots, options={method: options},
                    how=CompareOptions(keep_bytes=0, sensitivity=False), progress=bars,
                )  # fmt: skip
            if found.failures:
                raise ForewordError(f"{task}, {method}: {found.failures[0].reason}")
            [line] = found.lines
            return asdict(line.metrics["accuracy"])

        return Interval(**self._kept(name, make))

    def facts(self) -> Interval:
        """P@1 of the relations' own templates, every relation counting once."""

        def make() -> dict[str, Any]:
            lm = self._lm("masked")
            test = 40 if self.given.quick else None
            asked = facts.ask(lm, read_facts(self.given.data / "lama_trex"), "relation", train=40, test=test)
            asked = [one for one in asked if one.task is not None]
            prompts = dict(zip([a.relation.name for a in asked], facts.manual(lm, asked), strict=True))
            found = {a.relation: a.rank_R for a in facts.answer(lm, asked, prompts, "manual", 0)}
            mean, low, high = facts.macro_interval(found)["p_at_1"]
            return asdict(Interval(mean, low, high, 1, sum(map(len, found.values()))))

        return Interval(**self._kept("facts", make))

    def likeliest(self) -> dict[str, list[str]]:
        """The five likeliest pieces of each sentence's [MASK]."""

        def make() -> dict[str, list[str]]:
            tokenizer, found = AutoTokenizer.from_pretrained(EMBEDDED), {}
            for sentence in SENTENCES:
                ids = tokenizer(sentence)["input_ids"]
                best_5 = self._best(ids, ids.index(MASK), False, 5).indices
                found[sentence] = tokenizer.convert_ids_to_tokens(best_5.tolist())
            return found

        return self._kept("likeliest", make)

    def continuations(self) -> dict[str, str]:
        """Drawn at temperature 0.7 from the 40 likeliest pieces, 24 pieces, with seed 0."""

        def make() -> dict[str, str]:
            tokenizer, found = AutoTokenizer.from_pretrained(EMBEDDED), {}
            rng = torch.Generator().manual_seed(0)
            for text in OPENINGS:
                ids = [CLS, *tokenizer(text, add_special_tokens=False)["input_ids"]]
                for _ in range(24):
                    best = self._best(ids, len(ids) - 1, True, 40)
                    chosen = torch.multinomial((best.values / 0.7).softmax(0), 1, generator=rng)
                    ids.append(int(best.indices[chosen]))
                found[text] = tokenizer.decode(ids[1:])
            return found

        return self._kept("continuations", make)


def figures(one: Worth) -> dict[str, str]:
    """Cells of the table by what they tell."""
    losses, found = one.losses(), {}
    for length in (96, 512):
        masked, causal = losses[f"masked, {length} pieces"], losses[f"causal, {length} pieces"]
        found[f"masked accuracy, rows of {length} pieces"] = f"{100 * masked['accuracy']:.1f}"
        found[f"masked loss, rows of {length} pieces"] = f"{masked['loss']:.3f}"
        found[f"causal perplexity, rows of {length} pieces"] = f"{causal['perplexity']:.1f}"
    for places, loss in losses["causal, 512 pieces"]["loss_by_position"].items():
        found[f"causal loss at positions {places}"] = f"{loss:.2f}"
    found["LAMA T-REx, manual templates, P@1"] = percent(one.facts())
    for kind in ("masked", "causal"):
        for task in TASKS:
            plain, batch = (one.accuracy(kind, task, "manual", calibrate=c) for c in ("none", "batch"))
            found[f"{task}, {kind}, zero-shot"] = percent(plain)
            found[f"{task}, {kind}, zero-shot, batch calibration"] = percent(batch)
    for task in TASKS:
        shots, options = SHOTS.get(task, 16), Cell("masked", task, "16", "prefix-tuning").options()
        tuned = one.accuracy("masked", task, "prefix-tuning", shots, **options)
        found[f"{task}, masked, prefix tuning, {shots} shots"] = percent(tuned)
    return found


def page(given: argparse.Namespace) -> str:
    """Figures of both weights, and samples of the model's own."""
    before, after = (Worth(given, folder) for folder in (given.before, given.model))
    old, new = figures(before), figures(after)
    rows = [f"| {name} | {old[name]} | {new[name]} |" for name in new]
    hidden = [f"- {text} {', '.join(words)}" for text, words in after.likeliest().items()]
    written = [f"- {text}" for text in after.continuations().values()]
    return "\n".join([
        f"Made by `python recipes/embedded_model_card.py`. Weights {after.sha[:12]}, beside those that they began from "
        f"({before.sha[:12]}). Losses in nats, on {given.rows} x 512 pieces of the validation file; accuracy and P@1 "
        f"in percent, on {given.test:,} test rows at most, with 95% intervals over test rows and, where there are "
        f"shots, over {given.seeds} seeds; bfloat16.",
        "",
        "| | before | now |",
        "| --- | --- | --- |",
        *rows,
        "",
        "The five likeliest pieces of a mask:",
        "",
        *hidden,
        "",
        "Continuations, drawn at temperature 0.7 from the 40 likeliest pieces, seed 0:",
        "",
        *written,
    ])  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path("../shared")
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="the weights that the card is of")
    parser.add_argument(
        "--before", type=Path, default=shared / "models" / "foreword-mini", help="those they began from"
    )
    parser.add_argument("--data", type=Path, default=shared / "data", help="the folder with sst2, lama_trex, ...")
    parser.add_argument("--valid", type=Path, default=shared / "corpus" / "valid.jsonl.xz")
    parser.add_argument("--out", type=Path, default=Path("runs/embedded-model-card"), help="what was measured")
    parser.add_argument("--write", type=Path, default=EMBEDDED / "README.md", help="the card")
    parser.add_argument(
        "--rows", type=int, default=128, help="rows of the validation text as long as the context [128]"
    )
    parser.add_argument("--test", type=int, default=1000, help="test rows a task at most [1000]")
    parser.add_argument("--seeds", type=int, default=5, help="of 16 shots [5]")
    parser.add_argument("--quick", action="store_true", help="few rows, one seed")
    parser.add_argument("--threads", type=int, help="threads of torch")
    given = parser.parse_args(arguments)
    if given.quick:
        given.rows, given.test, given.seeds = 2, 20, 1
        given.out = given.out.with_name(f"{given.out.name}-quick")
        given.write = given.out / "quick.md"
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    return ended(given.out, lambda: run(given), given.threads)


def run(given: argparse.Namespace) -> list[FailedRun]:
    text = page(given)
    put(given.write, "embedded_model_card", text, "foreword-mini")
    print(text)
    return []


if __name__ == "__main__":
    sys.exit(main())
