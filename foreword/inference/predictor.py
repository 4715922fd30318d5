"""Predict, measure and save with an artefact and its model, as a notebook does after training."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from foreword.core.arguments import checked
from foreword.core.artefact import Artefact
from foreword.core.shapes import Float, Tensor
from foreword.errors import DataError
from foreword.inference.answers import Answered, answer_rows, text_metrics
from foreword.inference.reasoning import vote_scores
from foreword.inference.scoring import score_rows
from foreword.models.base import FrozenLM
from foreword.models.compatibility import check, suited
from foreword.models.load import load
from foreword.tasks.extract import NO_ANSWER
from foreword.tasks.input_rows import Given, items_of, row_of
from foreword.tasks.label_metrics import all_metrics
from foreword.tasks.rows import Row, require_answers
from foreword.tasks.task import Task


@final
@dataclass(frozen=True)
class Prediction:
    """Hold the likeliest label of a text and the probability of each label; or the generated answer, and its votes.

    `label` is empty if no answer was found in the generated texts. `texts` are the texts generated before, if any.
    """

    label: str
    probabilities: dict[str, float]
    texts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.label


@final
@dataclass(frozen=True, eq=False)
class Prompted:
    """Hold a model and the artefact it is used with. `lm` is None for an artefact that needs no model."""

    lm: FrozenLM | None
    artefact: Artefact

    def _repr_html_(self) -> str:
        """Return the artefact as a table, for notebooks."""
        return self.artefact._repr_html_()

    def predict(self, texts: Iterable[Given]) -> list[Prediction]:
        """Predict the labels of texts: strings, or for several fields mappings by name or sequences in their order.

        A DataFrame, a pyarrow table or a data set is read by its columns' names, a Series or an array by its items.

        Raises: ConfigError for anything else; DataError for an item that is empty, no text, or lacks a field.
        """
        rows = [row_of(self.artefact, text, f"text {number}") for number, text in enumerate(items_of(texts), 1)]
        return self.predict_rows(rows)

    @checked
    def predict_rows(self, rows: Sequence[Row]) -> list[Prediction]:
        """Predict the labels of rows, or generate the answers to them, in order."""
        if self.artefact.format.answers == "text":
            return [_answered(one) for one in self.answers(rows)]
        decoding = self.artefact.format.decoding
        if decoding is not None and decoding.conclude is None:
            answered = self.answers(rows)
            scores = vote_scores(self.artefact.format, rows, answered)
            texts = [one.texts for one in answered]
        else:
            scores, texts, answered = self.scores(rows), [()] * len(rows), []
        results = []
        for number, (row, score_C) in enumerate(zip(rows, scores, strict=True)):
            names = row.options or self.artefact.format.labels
            probability_C = score_C[: len(names)].double().softmax(-1).tolist()
            best = max(range(len(names)), key=probability_C.__getitem__)
            label = "" if answered and answered[number].answer is NO_ANSWER else names[best]
            results.append(Prediction(label, dict(zip(names, probability_C, strict=True)), texts[number]))
        return results

    def answers(self, rows: Sequence[Row]) -> list[Answered]:
        """Generate texts after rows, and return the answers extracted from them.

        Raises: ConfigError for an artefact whose labels are scored.
        """
        return answer_rows(self.lm, [(self.artefact, rows)])[0]

    def scores(self, rows: Sequence[Row]) -> Float[Tensor, "N C"]:
        """Return log-scores (rows, labels) whose softmax is the probability; -inf for options that a row lacks."""
        return score_rows(self.lm, [(self.artefact, rows)])[0]

    @checked
    def evaluate(self, task: Task, split: str = "test") -> dict[str, float]:
        """Return all metrics on a split of a task with the same labels, or of the answers in text.

        Raises: DataError if the split is empty, has no labels, or other labels than the artefact.
        """
        require_same_answers(self.artefact, task)
        if self.artefact.format.labels and task.labels != self.artefact.format.labels:
            raise DataError(
                f"The artefact's labels are {', '.join(self.artefact.format.labels)}, those of {task.name} are "
                f"{', '.join(task.labels)}; evaluate on a task with the same labels."
            )
        rows = task.rows(split)
        if not rows:
            raise DataError(f"{task.name} has no {split} rows; nothing can be measured on it.")
        require_answers(rows)
        if task.metric:
            return text_metrics(task, self.answers(rows), rows)
        return all_metrics(self.scores(rows).double().cpu().numpy(), np.array([row.label for row in rows]))

    @checked
    def save(self, folder: str | Path) -> Path:
        """Write the artefact's folder."""
        return self.artefact.save(folder)


def require_same_answers(artefact: Artefact, task: Task) -> None:
    """Check that the artefact and the task both answer in text, or both have labels. Raises: DataError if not."""
    if (artefact.format.answers == "text") != (task.answers == "text"):
        told = ["has labels", "answers in text"]
        own, other = artefact.format.answers == "text", task.answers == "text"
        raise DataError(
            f"The artefact {told[own]}, and {task.name} {told[other]}; give rows of the same kind, or name the column "
            "of labels (label) or of answers (targets)."
        )


def _answered(one: Answered) -> Prediction:
    total = sum(one.votes.values()) or 1.0
    shares = {str(key): vote / total for key, vote in one.votes.items()}
    return Prediction("" if one.answer is NO_ANSWER else str(one.answer), shares, one.texts)


@checked
def open_artefact(
    folder: str | Path, lm: FrozenLM | str | None = None, *, allow_other_weights: bool = False
) -> Prompted:
    """Load an artefact with its model: the recorded one, unless another is given.

    Raises: ArtefactError, ModelError as `Artefact.load`, `load` and `check` say.
    """
    name = lm if isinstance(lm, str) else None

    def loaded(name: str, kind: Any) -> FrozenLM:
        return lm if isinstance(lm, FrozenLM) else load(name, kind=kind)

    return open_with(folder, name, loaded, allow_other_weights)[0]


def open_with(
    folder: str | Path, name: str | None, load: Callable[[str, Any], FrozenLM], allow_other_weights: bool
) -> tuple[Prompted, str | None]:
    """Return an artefact with the model that `load(name, kind)` gives, and the warning of `check`, if there is one.

    `name` is a model to use in place of the one that the artefact names. If any model can read the artefact, which is
    words, such a model keeps its own kind: `kind` is None.

    Raises: ArtefactError, ModelError.
    """
    artefact = Artefact.load(folder)
    if not artefact.value.needs_model:
        return Prompted(None, artefact), None
    kind = None if name is not None and artefact.any_model else artefact.model["kind"]
    lm = load(name or artefact.model["name"], kind)
    warning = check(lm, artefact, allow_other_weights=allow_other_weights)
    return Prompted(lm, suited(lm, artefact)), warning
