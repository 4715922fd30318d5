"""Hold what an artefact predicts on rows: log-probabilities of labels, or generated texts; compute metrics from it."""

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
    """Hold the log-probabilities of each row's labels (rows, labels), and the index of the right label (rows)."""

    logprob_RC: NDArray[np.float64]
    label_R: NDArray[np.int64]

    def metrics(self, closed: bool = True) -> dict[str, float]:
        """Return all metrics of the rows; macro-F1 only if all rows share their labels (`closed`)."""
        found = all_metrics(self.logprob_RC, self.label_R)
        return {name: value for name, value in found.items() if closed or name != "macro_f1"}

    def resampled(self, names: Sequence[str]) -> dict[str, Resampled]:
        """Return the requested metrics that have intervals, on resamples of the rows."""
        return resample_all([name for name in MEASURES if name in names], self.logprob_RC, self.label_R)


@final
@dataclass(frozen=True, eq=False)
class TextPredictions:
    """Hold the texts generated for each row: its answer (None: no answer), the samples it came from, and the targets.

    `judge` says how they are measured; `meanings` are the attributes of each row, if slot errors are measured. `cut` is
    each row's share of texts that reached the limit of tokens without an end; it is empty in files of older versions.
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
        """Return each metric as a function of sums over the rows, the task's own first; texts are read once."""
        answers: list[Extracted] = [NO_ANSWER if a is None else a for a in self.answers]
        found = self.judge.summed(answers, self.targets, self.meanings)
        return found | ({"cut": cut_of(self.cut)} if found and self.cut else {})

    def metrics(self, closed: bool = True) -> dict[str, float]:
        return {name: one.value() for name, one in self.summed.items()}

    def resampled(self, names: Sequence[str]) -> dict[str, Resampled]:
        """Return the requested metrics on resamples of the rows."""
        return resample_summed({name: one for name, one in self.summed.items() if name in names})

    def pick(self, rows: Sequence[int]) -> "TextPredictions":
        """Return the predictions of the rows with these numbers."""
        picked = {
            name: tuple(column[i] for i in rows)
            for name in ("answers", "texts", "targets", "asked", "meanings", "cut")
            if (column := getattr(self, name))
        }
        return replace(self, **picked)

    def dump(self) -> bytes:
        """Encode the predictions as one JSON line for each row, from which every number can be computed again."""
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
        """Decode the predictions that `dump` encoded.

        Raises: ValueError, KeyError, TypeError if the lines are not those of `dump`.
        """
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
    """Hold the predictions on the rows of a split, and the rows read per second.

    For labels that were extracted from generated texts, `reasoned` has the share of rows without an answer and the
    share of texts that were cut.
    """

    found: Found
    examples_per_second: float
    reasoned: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Readers:
    """Hold the function that scores labels and the function that generates answers."""

    score: Score
    answer: Answer

    def read(self, lm: FrozenLM, artefact: Artefact, task: Task, rows: Sequence[Row]) -> SplitPredictions:
        """Read labelled rows of a task with an artefact and return the predictions.

        Raises: DataError if there are no rows, or a row has no label or target.
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
    """Cache the predictions of untrained prompts in words, so that the same rows are not read again for each seed.

    The same words calibrated by another rule are not read again either: their log-probabilities are shifted.
    """

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._found: dict[str, SplitPredictions] = {}

    def read(self, lm: FrozenLM, artefact: Artefact, task: Task) -> SplitPredictions:
        """Return the artefact's predictions on the task's test rows."""
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
    """Return the name of a task's main metric: accuracy, or the first metric of its texts."""
    return "accuracy" if "accuracy" in metrics or not metrics else next(iter(metrics))
