"""An artefact read on rows: log-probabilities of labels, or the texts that it writes; what its metrics are made of."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple, cast, final

import numpy as np
import torch
from numpy.typing import NDArray

from foreword.core.artefact import Artefact
from foreword.core.prompts import HardPrompt
from foreword.errors import DataError
from foreword.evaluation.statistics import MEASURES, Resampled, resample_all, resample_summed
from foreword.inference.answers import Answered, cut_of, judged
from foreword.inference.calibration import HardConfig
from foreword.inference.reasoning import vote_scores
from foreword.models.base import FrozenLM
from foreword.tasks.corpus_metrics import Summed
from foreword.tasks.extract import NO_ANSWER
from foreword.tasks.extract import Found as Extracted
from foreword.tasks.label_metrics import all_metrics, log_probabilities
from foreword.tasks.rows import Row, require_answers
from foreword.tasks.slots import Meaning
from foreword.tasks.task import Task
from foreword.tasks.text_metric import Judge

Pairs = Sequence[tuple[Artefact, Sequence[Row]]]
Score = Callable[[FrozenLM, Pairs], Sequence[Any]]  # per pair (rows, labels), -inf where a row has no such label
Answer = Callable[[FrozenLM, Pairs], Sequence[Sequence[Answered]]]
CALIBRATION = frozenset(field.name for field in fields(HardConfig))


@final
class Scored(NamedTuple):
    """Log-probabilities of each row's labels, and the right label."""

    logprob_RC: NDArray[np.float64]
    label_R: NDArray[np.int64]

    def metrics(self, closed: bool = True) -> dict[str, float]:
        """Return all metrics of the rows; macro-F1 only where all rows share their labels (`closed`)."""
        found = all_metrics(self.logprob_RC, self.label_R)
        return {name: value for name, value in found.items() if closed or name != "macro_f1"}

    def resampled(self, names: Sequence[str]) -> dict[str, Resampled]:
        """Return those of the metrics asked for that have intervals."""
        return resample_all([name for name in MEASURES if name in names], self.logprob_RC, self.label_R)


@final
@dataclass(frozen=True, eq=False)
class TextPredictions:
    """What was written for each row: its answer (None: there is none), the samples it was found in, and the targets.

    `judge` says how they are measured; `meanings` are the attributes of each row, where slot errors are. `cut` is each
    row's share of texts that had no end where their tokens ran out; empty where an older version did not count them.
    """

    judge: Judge
    answers: tuple[str | None, ...]
    texts: tuple[tuple[str, ...], ...]
    targets: tuple[tuple[str, ...], ...]
    asked: tuple[int, ...]
    meanings: tuple[Meaning, ...] = ()
    cut: tuple[float, ...] = ()

    @staticmethod
    def of(judge: Judge, answered: Sequence[Answered], rows: Sequence[Row]) -> "TextPredictions":
        return TextPredictions(
            judge,
            tuple(None if a is NO_ANSWER else cast("str", a) for a in judged(judge, answered)),
            tuple(a.texts for a in answered),
            tuple(row.targets for row in rows),
            tuple(a.asked for a in answered),
            judge.meanings(rows),
            tuple(a.cut / a.drawn for a in answered),
        )

    @cached_property
    def summed(self) -> dict[str, Summed]:
        """Return each metric as a function of sums over the rows, the task's own first; what was read is read once."""
        answers: list[Extracted] = [NO_ANSWER if a is None else a for a in self.answers]
        found = self.judge.summed(answers, self.targets, self.meanings)
        return found | ({"cut": cut_of(self.cut)} if found and self.cut else {})

    def metrics(self, closed: bool = True) -> dict[str, float]:
        return {name: one.value() for name, one in self.summed.items()}

    def resampled(self, names: Sequence[str]) -> dict[str, Resampled]:
        """Return those of the metrics asked for."""
        return resample_summed({name: one for name, one in self.summed.items() if name in names})

    def pick(self, rows: Sequence[int]) -> "TextPredictions":
        """Return some of the rows, by number."""
        picked = {
            name: tuple(column[i] for i in rows)
            for name in ("answers", "texts", "targets", "asked", "meanings", "cut")
            if (column := getattr(self, name))
        }
        return replace(self, **picked)

    def dump(self) -> bytes:
        """Return one JSON line a row, so that every number can be had again from what was written."""
        columns = zip(self.answers, self.texts, self.targets, self.asked, strict=True)
        judge = self.judge.to_json()
        lines = [
            {**judge, "answer": answer, "texts": list(texts), "targets": list(targets), "asked": asked}
            for answer, texts, targets, asked in columns
        ]
        for line, meaning in zip(lines, self.meanings, strict=False):
            line["meaning"] = dict(meaning)
        for line, cut in zip(lines, self.cut, strict=False):
            line["cut"] = cut
        return "".join(json.dumps(line) + "\n" for line in lines).encode()

    @staticmethod
    def load(data: bytes) -> "TextPredictions":
        """Load what `dump` wrote. Raises: ValueError, KeyError, TypeError for lines of another form."""
        lines = [json.loads(line) for line in data.decode().splitlines()]
        return TextPredictions(
            judge=Judge(**{name: lines[0][name] for name in ("metric", "case", "slots") if name in lines[0]})
            if lines
            else Judge(),
            answers=tuple(line["answer"] for line in lines),
            texts=tuple(tuple(line["texts"]) for line in lines),
            targets=tuple(tuple(line["targets"]) for line in lines),
            asked=tuple(line["asked"] for line in lines),
            meanings=tuple(line["meaning"] for line in lines if "meaning" in line),
            cut=tuple(line["cut"] for line in lines if "cut" in line),
        )


Found = Scored | TextPredictions


@final
@dataclass(frozen=True, eq=False)
class SplitPredictions:
    """What was found on rows, and how many of them a second.

    `reasoned` is, of labels that were found in what was written, the share of rows without an answer and that of texts
    that were cut.
    """

    found: Found
    examples_per_second: float
    reasoned: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Readers:
    """What scores labels and what writes answers."""

    score: Score
    answer: Answer

    def read(self, lm: FrozenLM, artefact: Artefact, task: Task, rows: Sequence[Row]) -> SplitPredictions:
        """Read an artefact on labelled rows of a task.

        Raises: DataError where there are no rows, or one has no label or target.
        """
        if not rows:
            raise DataError("There are no rows to evaluate on; give a task with rows in this split.")
        require_answers(rows)
        began = time.perf_counter()
        reasoned: dict[str, float] = {}
        decoding = artefact.format.decoding
        if task.metric:
            answered = self.answer(lm, [(artefact, rows)])[0]
            result: Found = TextPredictions.of(task.judge, answered, rows)
        else:
            if decoding is not None and decoding.conclude is None:
                answered = self.answer(lm, [(artefact, rows)])[0]
                scores = vote_scores(artefact.format, rows, answered)
                reasoned = {
                    "no_answer": sum(a.answer is NO_ANSWER for a in answered) / len(rows),
                    "cut": sum(a.cut / a.drawn for a in answered) / len(rows),
                }
            else:
                scores = self.score(lm, [(artefact, rows)])[0]
            score_RC = torch.as_tensor(scores).detach().double().cpu().numpy()
            result = Scored(log_probabilities(score_RC), np.array([row.label for row in rows], dtype=np.int64))
        return SplitPredictions(result, len(rows) / max(time.perf_counter() - began, 1e-9), reasoned)


class ReadCache:
    """What was read of words that nothing trained: a hand-written prompt reads the same rows once, not once a seed.

    The same words calibrated by another rule are not read again either: their log-probabilities are shifted.
    """

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._found: dict[str, SplitPredictions] = {}

    def read(self, lm: FrozenLM, artefact: Artefact, task: Task) -> SplitPredictions:
        """Return the artefact on the task's test rows."""
        form = artefact.format
        if artefact.numbers_trained or not isinstance(artefact.value, HardPrompt) or form.premise is not None:
            return self._readers.read(lm, artefact, task, task.test)
        bare = replace(form, shift=(), temperature=1.0, calibration="none")
        config = {name: value for name, value in artefact.config.items() if name not in CALIBRATION}
        told = [
            artefact.method,
            config,
            bare.to_json(),
            artefact.fingerprint,
            lm.kind,
            task.judge.to_json() if task.metric else None,
        ]
        key = json.dumps([*told, task.hashes()["test"]])
        if key not in self._found:
            self._found[key] = self._readers.read(lm, replace(artefact, format=bare), task, task.test)
        reading = self._found[key]
        if not form.calibrated or isinstance(reading.found, TextPredictions):
            return reading
        shifted_RC = (reading.found.logprob_RC + np.array(form.shift or [0.0])) / form.temperature
        return replace(reading, found=reading.found._replace(logprob_RC=log_probabilities(shifted_RC)))


def primary(metrics: Mapping[str, Any]) -> str:
    """Return the metric that a task is judged by: accuracy, or the first of those of its texts."""
    return "accuracy" if "accuracy" in metrics or not metrics else next(iter(metrics))
