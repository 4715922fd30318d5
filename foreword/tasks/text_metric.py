"""Judge the answers in text of a task: by its own metric, and by the others that are reported beside it."""

import math
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

import numpy as np
from jaxtyping import Float

from foreword.errors import ConfigError
from foreword.tasks.answer_metrics import GENERATION, METRICS, NAMES, Metric, value_of
from foreword.tasks.corpus_metrics import (
    CORPUS,
    Summed,
    distinct,
    mean_of,
    require_library,
    sentence_value,
    tokenizers,
    words_by,
)
from foreword.tasks.extract import NO_ANSWER, Found
from foreword.tasks.rows import Row
from foreword.tasks.slots import SLOTS, Meaning, meaning_of, slot_errors

Case = Literal["kept", "lower", "uncased"]


@final
@dataclass(frozen=True)
class Judge:
    """Judge answers by the task's `metric`, in this `case`; `slots` names the rules for slot errors (None: not asked).

    A metric of generation (BLEU, chrF, ROUGE-L, NIST) is reported with the others of its kind. `case` matters to those
    alone, since the others ignore case anyway: texts as they are, in lower case, or as an uncased model writes them.

    Raises: ConfigError for an unknown name.
    """

    metric: Metric = "exact_match"
    case: Case = "kept"
    slots: str | None = None

    def __post_init__(self) -> None:
        if self.metric not in NAMES:
            raise ConfigError(f"{self.metric!r} is not a metric of texts; choose one of {', '.join(NAMES)}.")
        if self.slots is not None and self.slots not in SLOTS:
            raise ConfigError(f"{self.slots!r} is no way to find slots in texts; choose one of {', '.join(SLOTS)}.")
        if not self.generates and (self.case != "kept" or self.slots):
            raise ConfigError(
                f"case and slots are for metrics of generated texts ({', '.join(GENERATION)}), and the metric is "
                f"{self.metric}; choose one of those, or leave them out."
            )

    def require(self) -> None:
        """Check that the metrics' libraries are installed. Raises: ConfigError that says what to install, if not."""
        for name in GENERATION if self.generates else ():
            require_library(name)

    @property
    def generates(self) -> bool:
        """Return whether `metric` is one of generation, which reads all answers as one corpus."""
        return self.metric in GENERATION

    def to_json(self) -> dict[str, Any]:
        """Return the metric, and the other values that differ from the defaults."""
        return {name: value for name, value in asdict(self).items() if name == "metric" or value not in (None, "kept")}

    def meanings(self, rows: Sequence[Row]) -> tuple[Meaning, ...]:
        """Return the attributes and values of each row; empty if slots are not asked for.

        Raises: DataError for a row that has none.
        """
        return tuple(meaning_of(row.fields, row.where) for row in rows) if self.slots else ()

    def summed(
        self, answers: Sequence[Found], targets: Sequence[Sequence[str]], meanings: Sequence[Meaning] = ()
    ) -> dict[str, Summed]:
        """Return metrics by name: the task's own first, then the others, and last which rows have no answer."""
        if not answers:
            return {}
        none = mean_of(np.array([a is NO_ANSWER for a in answers], dtype=np.float64))
        if not self.generates:
            names = dict.fromkeys((self.metric, "exact_match", "f1"))
            rows = list(zip(answers, targets, strict=True))
            return {n: mean_of(np.array([value_of(n, a, t) for a, t in rows])) for n in names} | {"no_answer": none}
        self.require()
        texts = [self._text(a) for a in answers]
        own = tuple(tuple(map(self._text, some)) for some in targets)
        results = {name: CORPUS[name](texts, own) for name in dict.fromkeys((self.metric, *CORPUS))}
        results |= {f"distinct_{n}": distinct(n, texts, words_by(own)) for n in (1, 2)}
        same = [
            float(" ".join(t.split()) in {" ".join(o.split()) for o in some})
            for t, some in zip(texts, own, strict=True)
        ]
        results["exact_text"] = mean_of(np.array(same))
        if self.slots:
            results["slot_error"] = slot_errors(SLOTS[self.slots](), texts, meanings)
        return results | {"no_answer": none}

    def metrics(self, answers: Sequence[Found], rows: Sequence[Row]) -> dict[str, float]:
        """Return the metrics of the rows by name; NaN for one that cannot measure them."""
        found = self.summed(answers, [row.targets for row in rows], self.meanings(rows))
        return {name: one.value() for name, one in found.items()}

    def tokenizers(self, targets: Sequence[Sequence[str]]) -> dict[str, str]:
        """Return by metric of generation the tokenizer that reads these targets, if it is not the library's default."""
        return tokenizers(tuple(tuple(map(self._text, some)) for some in targets)) if self.generates else {}

    def values(self, answers: Sequence[Found], rows: Sequence[Row]) -> Float[np.ndarray, " B"]:
        """Return the task's metric of each row alone, for search methods; a missing answer is worth 0."""
        return np.array([self.value(a, row.targets) for a, row in zip(answers, rows, strict=True)], dtype=np.float64)

    def value(self, answer: Found, targets: Sequence[str]) -> float:
        if self.metric in METRICS:
            return value_of(self.metric, answer, targets)
        own = list(map(self._text, targets))
        result = 0.0 if answer is NO_ANSWER else sentence_value(self.metric, self._text(answer), own)
        if math.isnan(result):  # a search needs a value of every row, and the same text is right whatever measures it
            return float(self._text(answer).split() in [target.split() for target in own])
        if self.metric != "nist":
            return min(result, 1.0)
        # NIST has no highest value; it is told as a share of what the best of the targets has.
        best = max(sentence_value(self.metric, target, own) for target in own)
        return min(1.0, result / best) if best > 0 else 0.0

    def right(self, answer: Found, targets: Sequence[str]) -> bool:
        """Return whether an answer has the highest possible value."""
        return self.value(answer, targets) >= 1 or math.isclose(self.value(answer, targets), 1.0)

    def _text(self, found: Found) -> str:
        text = "" if found is NO_ANSWER else unicodedata.normalize("NFC", found)
        return text if self.case == "kept" else text.lower() if self.case == "lower" else uncased(text)


def recorded(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return metrics as a record has them: None for one that could not be measured, since JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def uncased(text: str) -> str:
    """Write a text in lower case without accents and with spaces around punctuation.

    That is what word pieces of an uncased vocabulary keep, so that "family - friendly" is as right as
    "family-friendly".
    """
    text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    parted = (f" {c} " if c in string.punctuation or unicodedata.category(c)[0] == "P" else c for c in text)
    return " ".join("".join(parted).split())
