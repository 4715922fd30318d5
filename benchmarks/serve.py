"""Serving thousands of prompts over one model: how much slower ten thousand are than one, and beside PEFT and by hand.

    python -m benchmarks.serve                         every cell that has no result yet, then SERVING.md
    python -m benchmarks.serve --list                  the cells and whether they are done
    python -m benchmarks.serve --only peers/classification/64 --again

Stop it at any time; the same command goes on. The last line printed is JSON.
"""

import argparse
import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.parts import cells, served, serving_report, shapes
from benchmarks.parts.measure import machine
from benchmarks.parts.serving_peers import Peers
from foreword.serving.engine import Engine, Room

COUNTS = (1, 10, 100, 1_000, 10_000)
KINDS = ("classification", "generation")
LAWS = ("uniform", "zipf")
NAMES = [
    *(f"peers/{kind}/{tasks}" for kind in KINDS for tasks in (1, 64)),
    *(f"ratio/{kind}/{law}" for kind in KINDS for law in LAWS),
    *(f"open/{kind}/{law}/{count}" for kind in KINDS for law in LAWS for count in COUNTS),
    "tiers/classification/uniform",
    "cold",
]
BOUND = {"classification": 0.25, "generation": 2.0}  # seconds within which 99 of 100 answers have to come


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = cells.options(
        "serve", __doc__, "a tiny model and few requests", "../shared/data/sst2/test.jsonl", "SERVING.md"
    )
    cells.device_options(parser)
    parser.add_argument("--shape", choices=("small", "gpt2"), default="small", help="6 layers of 384, or GPT-2's")
    return cells.parsed(parser, arguments, NAMES)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    given = parse(arguments)
    made: list[Bench] = []  # at the first cell that is measured: it builds a model and its prompts
    setting = {"shape": given.shape, "dtype": given.dtype, "device": given.device, "quick": given.quick}

    def measured(name: str) -> dict[str, Any]:
        made.extend([] if made else [Bench(given)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries measured
            return {"setting": setting, "machine": machine(given.device), **made[0].measure(name)}

    return cells.run(
        "serve",
        given,
        given.out / f"serve-{'quick' if given.quick else given.shape}-{given.device}-{given.dtype}",
        measured,
        serving_report.short,
        lambda: serving_report.render(cells.results(given.out, "serve-*", given.quick)),
    )


class Bench:
    """One model, its prompts and what is asked; engines are made for each cell."""

    def __init__(self, given: argparse.Namespace):
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[given.dtype]
        shape = "smoke" if given.quick else given.shape
        self.quick = given.quick
        self.model, self.lm = served.build(shape, dtype, given.device)
        self.store = given.out / f"serve-prompts-{shape}-{given.dtype}"
        texts = [row["text"] for row in shapes.sentences(Path(given.rows), 500)]
        new = 4 if given.quick else 32
        self.loads = {kind: served.Load(kind, texts, new) for kind in KINDS}
        self.rng = random.Random(0)

    def engine(self, compiled: int = 6 * 2**30) -> Engine:
        return Engine(self.lm, Room(memory=4 * 2**30, compiled=compiled, rows=64, waiting=10**6))

    def measure(self, name: str) -> dict[str, Any]:
        what, *rest = name.split("/")
        parts: dict[str, Callable[..., dict[str, Any]]] = {
            "peers": self.peers, "ratio": self.ratio, "open": self.open, "tiers": self.tiers, "cold": self.cold,
        }  # fmt: skip
        return parts[what](*rest)

    def peers(self, kind: str, tasks: str) -> dict[str, Any]:
        """Ours, by hand and PEFT in turn on the same requests, after a gate that all of them answer the same."""
        load, count = self.loads[kind], int(tasks)
        size = 8 if self.quick else 64
        asked = [(number % count, load.texts[number % len(load.texts)]) for number in range(size)]
        versions = served.write(self.lm, self.store, count)
        peers = Peers(self.model, self.lm, count)
        sides: dict[str, Callable[[], Any]]
        with self.engine() as engine:
            if kind == "classification":
                sides = {
                    "ours": lambda: self._labels(engine, versions, asked),
                    "hand": lambda: peers.labels_by_hand(asked),
                    "peft grouped": lambda: peers.labels_grouped(asked),
                    "peft loop": lambda: peers.labels_one_by_one(asked),
                }
            else:
                sides = {
                    "ours": lambda: self._texts(engine, load, versions, asked),
                    "hand": lambda: peers.texts_by_hand(asked, load.new),
                    "peft loop": lambda: peers.texts_one_by_one(asked, load.new),
                }
            found = {side: answer() for side, answer in sides.items()}
            apart = self._apart(kind, found)
            if apart["void"]:
                return {"void": apart["void"]}
            took: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(2 if self.quick else 7):
                for side, answer in sides.items():
                    began = time.perf_counter()
                    answer()
                    took[side].append(time.perf_counter() - began)
        ratios = {
            side: served.interval([t / o for t, o in zip(times, took["ours"], strict=True)], self.rng)
            for side, times in took.items()
            if side != "ours"
        }
        return {"requests": size, "gate": apart["largest"], "seconds_each": took, "ratio": ratios}

    def _labels(self, engine: Engine, versions: list[Any], asked: list[tuple[int, str]]) -> torch.Tensor:
        futures = [engine.classify([served.RowRequest(versions[task], text)]) for task, text in asked]
        return torch.tensor([[*future.result()[0].probabilities.values()] for future in futures])

    def _texts(self, engine: Engine, load: served.Load, versions: list[Any], asked: list[tuple[int, str]]) -> list[str]:
        sampling = served.Sampling(max_tokens=load.new, temperature=0.0)
        tickets = [engine.generate(served.RowRequest(versions[task], text), sampling) for task, text in asked]
        return [ticket.result.result().text for ticket in tickets]

    def _apart(self, kind: str, found: dict[str, Any]) -> dict[str, Any]:
        """The largest difference of a probability, or how many of the texts differ; void where all do not agree."""
        if kind == "classification":
            largest = max(float((found[side] - found["ours"]).abs().max()) for side in found)
            limit = 1e-4 if self.lm.dtype == torch.float32 else 2e-2
            return {"largest": largest, "void": f"probabilities differ by {largest:.1e}" if largest > limit else ""}
        before = self.lm.tokenizer("It was", add_special_tokens=False)["input_ids"]
        known, ours = len(self._decoded(before)), found["ours"]
        texts = {
            side: [self._decoded([*before, *ids])[known:] for ids in found[side]] for side in found if side != "ours"
        }
        wrong = {side: sum(a != b for a, b in zip(own, ours, strict=True)) for side, own in texts.items()}
        # Two pieces within rounding of each other are chosen either way, and what follows differs: one text in thirty.
        bad = {side: count for side, count in wrong.items() if count > len(ours) // 30}
        return {"largest": max(wrong.values()), "void": f"texts differ: {bad}" if bad else ""}

    def _decoded(self, ids: list[int]) -> str:
        return self.lm.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def ratio(self, kind: str, law: str) -> dict[str, Any]:
        """Bursts of one prompt and of ten thousand in turn, all of them in memory and compiled."""
        load, most = self.loads[kind], 20 if self.quick else COUNTS[-1]
        versions = served.write(self.lm, self.store, most)
        size = 30 if self.quick else 600 if kind == "classification" else 128
        many, one = [], []
        with self.engine() as engine:
            served.warm(engine, load, versions)
            for _ in range(2 if self.quick else 7):
                one.append(served.burst(engine, load, versions, [0] * size))
                many.append(served.burst(engine, load, versions, served.drawn(size, most, law, self.rng)))
            held = engine.load()
        return {
            "prompts": most,
            "one": one,
            "many": many,
            "ratio": served.interval([m / o for m, o in zip(many, one, strict=True)], self.rng),
            "bytes_compiled": held.bytes_compiled,
            "prompts_compiled": held.prompts_compiled,
        }

    def open(self, kind: str, law: str, prompts: str) -> dict[str, Any]:
        """Poisson arrivals at rising shares of what a burst reaches; the highest whose p99 is within the bound."""
        load, count = self.loads[kind], int(prompts) if not self.quick else min(20, int(prompts))
        versions = served.write(self.lm, self.store, count)
        size = 30 if self.quick else 400 if kind == "classification" else 96
        seconds = 0.5 if self.quick else 6.0 if kind == "classification" else 12.0
        with self.engine() as engine:
            served.warm(engine, load, versions)

            def choose(wanted: int) -> list[int]:
                return served.drawn(wanted, count, law, self.rng)

            full = served.burst(engine, load, versions, choose(size))
            trials = [
                served.poisson(engine, load, versions, choose, share * full, seconds, self.rng)
                for share in ((0.5,) if self.quick else (0.3, 0.5, 0.65, 0.8, 0.9))
            ]
        within = [trial["rate"] for trial in trials if trial["p99"] <= BOUND[kind]]
        return {"burst": full, "bound": BOUND[kind], "trials": trials, "within": max(within, default=0.0)}

    def tiers(self, kind: str, law: str) -> dict[str, Any]:
        """Ten thousand prompts where the compiled tier has room for a tenth of them."""
        load, most = self.loads[kind], 20 if self.quick else COUNTS[-1]
        versions = served.write(self.lm, self.store, most)
        dims = self.lm.dims
        one = 2 * dims.layers * dims.heads * dims.head_size * (served.LENGTH + 1) * torch.finfo(self.lm.dtype).bits // 8
        size = 30 if self.quick else 600
        some, one_prompt = [], []
        with self.engine(compiled=one * most // 10) as engine:
            served.warm(engine, load, versions)
            for _ in range(2 if self.quick else 5):
                one_prompt.append(served.burst(engine, load, versions, [0] * size))
                some.append(served.burst(engine, load, versions, served.drawn(size, most, law, self.rng)))
        ratios = [s / o for s, o in zip(some, one_prompt, strict=True)]
        return {
            "prompts": most,
            "share": 0.1,
            "one": one_prompt,
            "many": some,
            "ratio": served.interval(ratios, self.rng),
        }

    def cold(self) -> dict[str, Any]:
        count = 20 if self.quick else 1000
        versions = served.write(self.lm, self.store, count)
        dims = self.lm.dims
        column = 2 * dims.layers * dims.heads * dims.head_size * torch.finfo(self.lm.dtype).bits // 8
        return {
            **served.cold(self.lm, versions),
            "bytes_on_disk": served.stored(versions[0]),
            "bytes_in_memory": served.LENGTH * dims.width * 4,
            "bytes_compiled": (served.LENGTH + 1) * column,
        }


if __name__ == "__main__":
    main()
