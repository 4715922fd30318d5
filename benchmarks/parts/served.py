"""A model and thousands of prompts for it on disk, an engine over them, and requests that arrive by themselves."""

import math
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.parts import shapes
from foreword.core.artefact import RECORD, TENSORS, Artefact
from foreword.core.format import Format
from foreword.core.prompts import SoftPrompt
from foreword.core.template import Template
from foreword.models.base import FrozenLM
from foreword.serving.engine import Engine
from foreword.serving.protocol import RowRequest, Sampling
from foreword.serving.store import Version

LENGTH = 20
SHAPES = {
    "small": shapes.Shape("gpt2", layers=6, width=384, vocab=30522, spread=0.05),
    "gpt2": shapes.Shape("gpt2"),
    "smoke": shapes.Shape("gpt2", layers=2, width=32, heads=2, vocab=30522, spread=0.3),
}
# PEFT puts its vectors before the row's first token, so ours stand there too.
FORM = Format(
    Template.parse(f"{{soft:{LENGTH}}}{{text|shorten}} It was {{answer}}"), ("negative", "positive"),
    (("terrible",), ("wonderful",)), soft_first=True,
)  # fmt: skip


def build(shape: str, dtype: torch.dtype, device: str) -> tuple[Any, FrozenLM]:
    """The model, which never ends a text by itself, and the same behind Foreword."""
    model = shapes.build(SHAPES[shape], dtype, device)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    return model, shapes.wrapped(model)


def prompt(lm: FrozenLM, number: int) -> torch.Tensor:
    """(P, D) at the scale of the model's embeddings; the same numbers every time."""
    draw = torch.Generator().manual_seed(number)
    scale = float(lm.embed(torch.arange(1000, device=lm.device)[None]).std())
    return scale * torch.randn(LENGTH, lm.dims.width, generator=draw)


def write(lm: FrozenLM, folder: Path, count: int) -> list[Version]:
    """Artefacts in a folder, those that are there kept."""
    made = []
    for number in range(count):
        target = folder / f"tenant-{number}"
        if not (target / RECORD).exists():
            Artefact(
                SoftPrompt(prompt(lm, number)), FORM, "prompt-tuning", {}, number,
                {"name": lm.name, "kind": lm.kind}, asdict(lm.fingerprint()), ("text",),
            ).save(target)  # fmt: skip
        made.append(Version(target.name, 1, target, f"{number}"))
    return made


def drawn(count: int, prompts: int, law: str, rng: random.Random) -> list[int]:
    """Which prompt each request names: every one as likely, or by Zipf's law with exponent 1."""
    if law == "uniform":
        return [rng.randrange(prompts) for _ in range(count)]
    return rng.choices(range(prompts), [1 / (rank + 1) for rank in range(prompts)], k=count)


@dataclass(frozen=True)
class Load:
    """What every request is: rows to label, or texts to continue by `new` pieces."""

    kind: str
    texts: Sequence[str]
    new: int

    def send(self, engine: Engine, version: Version, number: int) -> Future[Any]:
        row = RowRequest(version, self.texts[number % len(self.texts)])
        if self.kind == "classification":
            return engine.classify([row])
        return engine.generate(row, Sampling(max_tokens=self.new, temperature=0.0)).result


def burst(engine: Engine, load: Load, versions: Sequence[Version], chosen: Sequence[int]) -> float:
    """Requests a second where all are asked at once."""
    began = time.perf_counter()
    for future in [load.send(engine, versions[which], number) for number, which in enumerate(chosen)]:
        future.result()
    return len(chosen) / (time.perf_counter() - began)


def warm(engine: Engine, load: Load, versions: Sequence[Version], size: int = 2000) -> None:
    """Ask for every prompt once, so that what fits in memory and compiled is there."""
    for start in range(0, len(versions), size):
        part = versions[start : start + size]
        futures = [engine.classify([RowRequest(version, "film")]) for version in part]
        for future in futures:
            future.result()


def poisson(
    engine: Engine,
    load: Load,
    versions: Sequence[Version],
    choose: Callable[[int], list[int]],
    rate: float,
    seconds: float,
    rng: random.Random,
) -> dict[str, float]:
    """Open loop: requests come at their times whatever became of those before. Seconds from arrival to answer."""
    count = max(20, int(rate * seconds))
    times, now = [], 0.0
    for _ in range(count):
        now += rng.expovariate(rate)
        times.append(now)
    took = [math.nan] * count
    left = threading.Semaphore(0)
    chosen = choose(count)
    began = time.perf_counter()

    def done(number: int, due: float) -> Callable[[Future[Any]], None]:
        def note(future: Future[Any]) -> None:
            took[number] = time.perf_counter() - began - due
            left.release()

        return note

    for number, due in enumerate(times):
        wait = due - (time.perf_counter() - began)
        if wait > 0:
            time.sleep(wait)
        load.send(engine, versions[chosen[number]], number).add_done_callback(done(number, due))
    for _ in range(count):
        left.acquire()
    return {"rate": rate, "requests": count, "p50": quantile(took, 0.5), "p99": quantile(took, 0.99)}


def cold(lm: FrozenLM, versions: Sequence[Version]) -> dict[str, float]:
    """Seconds to have a prompt that was not in memory: read, checked and ready."""
    from foreword.serving.bank import PromptBank

    bank = PromptBank(lm, 2**30, 2**20)
    took = []
    for version in versions:
        began = time.perf_counter()
        bank.entry(version)
        took.append(time.perf_counter() - began)
    return {"p50": quantile(took, 0.5), "p99": quantile(took, 0.99), "prompts": len(took)}


def stored(version: Version) -> int:
    """Bytes on disk of one prompt's tensors and record."""
    return sum((version.folder / name).stat().st_size for name in (TENSORS, RECORD))


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def interval(ratios: Sequence[float], rng: random.Random) -> dict[str, Any]:
    """The median and its 95% bootstrap interval."""
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"median": statistics.median(ratios), "low": medians[50], "high": medians[1949], "all": list(ratios)}
