"""A model, methods and training with planted outcomes, so that a comparison's own decisions can be tested."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from foreword.core.artefact import Artefact
from foreword.core.prompts import HardPrompt, SoftPrompt
from foreword.errors import ModelError
from foreword.evaluation.compare import Backend
from foreword.models.base import Dims, Fingerprint, FrozenLM
from foreword.tasks.rows import Row
from foreword.tasks.task import Task
from foreword.training.contract import Job, Method
from foreword.training.trainer import Outcome, Trained


class FakeLM(FrozenLM):
    """Has a name and a fingerprint, and cannot be run."""

    kind = "masked"
    dims = Dims(4, 1, 1, 4, 10, 32)
    tokenizer = None
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, name: str = "fake", weights: str = "w") -> None:
        self.name = name
        self._weights = weights

    def fingerprint(self) -> Fingerprint:
        return Fingerprint("t", "s", self._weights, "float32")

    def named_weights(self) -> dict[str, torch.Tensor]:
        return {"w": torch.zeros(30, 40)}


FakeLM.__abstractmethods__ = frozenset()  # a comparison calls nothing else of a model


@dataclass(frozen=True)
class FakeConfig:
    """`skill` decides the development score, `luck` the test score; they are told apart on purpose."""

    skill: float = 0.8
    luck: float = 0.8
    length: int = 4
    note: str = ""


def fake_method(name: str, *, gradient: bool, mixed: bool, learns: bool = True) -> Method:
    class Fake(Method):
        summary: ClassVar[str] = "planted"
        source: ClassVar[str] = "here"
        Config: ClassVar[type] = FakeConfig
        form: ClassVar[str] = "soft" if learns else "hard"
        freezes_lm: ClassVar[bool] = mixed or not gradient

    Fake.name, Fake.gradient, Fake.resumes, Fake.mixed_batch = name, gradient, gradient, mixed
    return Fake()


METHODS = {
    "manual": fake_method("manual", gradient=False, mixed=False, learns=False),
    "stacked": fake_method("stacked", gradient=True, mixed=True),
    "fine-tuning": fake_method("fine-tuning", gradient=True, mixed=False),
}


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


@dataclass
class World:
    """Trains by decree and keeps a diary. `kill_after` runs it dies; runs in `broken` (method, seed) fail."""

    calls: list[list[Job]] = field(default_factory=list)
    checkpoints: list[tuple[Path | None, bool]] = field(default_factory=list)
    scored: list[Artefact] = field(default_factory=list)
    kill_after: int | None = None
    broken: frozenset[tuple[str, int]] = frozenset()
    ended: int = 0

    def tools(self) -> Backend:
        return Backend(METHODS, self.train_many, self.score)

    def train_many(
        self,
        lm: FrozenLM,
        jobs: Sequence[Job],
        *,
        progress: Any = None,
        on_done: Any = None,
        checkpoint: Path | None = None,
        resume: bool = False,
    ) -> list[Outcome]:
        self.calls.append(list(jobs))
        self.checkpoints.append((checkpoint, resume))
        outcomes: list[Outcome] = []
        for index, job in enumerate(jobs):
            if self.kill_after is not None and self.ended >= self.kill_after:
                raise Killed
            self.ended += 1
            outcome: Outcome = Trained(self._artefact(lm, job), 1.5, 10.0)
            if (job.method.name, job.seed) in self.broken:
                outcome = ModelError("the loss is not a number.")
            outcomes.append(outcome)
            on_done(index, outcome)
        return outcomes

    def _artefact(self, lm: FrozenLM, job: Job) -> Artefact:
        learns = job.method.name != "manual"
        skill, form = job.config.skill, job.format
        soft = SoftPrompt(torch.full((job.config.length, 4), float(job.seed)))
        measured = {"rows": len(job.task.validation), "accuracy": skill, "macro_f1": skill, "nll": 1 - skill}
        return Artefact(
            value=soft if learns else HardPrompt(torch.zeros(0).long()),
            format=form,
            method=job.method.name,
            config=asdict(job.config),
            seed=job.seed,
            model={"name": lm.name, "kind": lm.kind},
            fingerprint=asdict(lm.fingerprint()),
            fields=job.task.fields,
            metrics={"validation": measured},
            hashes=job.task.hashes(),
            recipe={"format": job.format.to_json()},
            numbers_trained=4 * job.config.length if learns else 0,
        )

    def score(self, lm: FrozenLM, pairs: Sequence[tuple[Artefact, Sequence[Row]]]) -> list[torch.Tensor]:
        """Scores that are right on a `luck` part of the rows, which ones depending on the seed."""
        found = []
        for artefact, rows in pairs:
            self.scored.append(artefact)
            rng = np.random.default_rng(artefact.seed if artefact.numbers_trained else 99)
            right = rng.random(len(rows)) < artefact.config["luck"]
            label = np.array([row.label for row in rows])
            said = np.where(right, label, 1 - label)
            found.append(torch.tensor(2.0 * (said[:, None] == np.arange(2))))
        return found


def fake_task(rows: int = 40, name: str = "fake-task") -> Task:
    def split(part: str, count: int) -> list[dict[str, str]]:
        return [{"text": f"{part} text {i}", "label": ("no", "yes")[i % 2]} for i in range(count)]

    return Task(train=split("train", 60), validation=split("validation", 20), test=split("test", rows), name=name)
