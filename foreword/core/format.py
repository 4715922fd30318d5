"""How a task is put to a model: the template, the label words and the truncation; everything but what is learnt."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from foreword.core.template import Template
from foreword.errors import ConfigError

Truncate = Literal["tail", "head", "middle", "error"]


@dataclass(frozen=True)
class Format:
    """A template with its label words, recorded whole in every artefact.

    `labels` are the label names in order and `words` their label words, one or more each; both are empty where each row
    brings its own options. `soft_first` puts leading slots before [CLS] or BOS instead of after it. `max_length`
    limits a row in tokens, prompt included; None means the model's context. `pieces` says how a masked model scores a
    word of several pieces: the mean of the masks' log-probabilities, or their sum.

    Calibration is part of the format: `shift` is added to the labels' log-scores (empty: nothing is), which are then
    divided by `temperature`; `calibration` names the rule that they came from. Where rows bring their own options there
    is no shift per label: the scores of the same options after `premise` are taken off instead.
    """

    template: Template
    labels: tuple[str, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()
    truncate: Truncate = "tail"
    soft_first: bool = False
    max_length: int | None = None
    pieces: Literal["mean", "sum"] = "mean"
    shift: tuple[float, ...] = ()
    temperature: float = 1.0
    calibration: str = "none"
    premise: str | None = None

    def __post_init__(self) -> None:
        if self.shift and (len(self.shift) != len(self.labels) or not all(map(math.isfinite, self.shift))):
            raise ConfigError(
                f"The calibration has {len(self.shift)} numbers for {len(self.labels)} labels; each label needs one "
                "finite number."
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"The temperature is {self.temperature!r}; it must be a finite number above 0.")

    @property
    def calibrated(self) -> bool:
        """Whether scores are changed after they were read."""
        return bool(self.shift) or self.temperature != 1.0 or self.premise is not None

    def without_labels(self) -> "Format":
        """The same rows with nothing to choose from, for text that goes on and for hidden states."""
        return replace(self, labels=(), words=(), shift=(), temperature=1.0, calibration="none", premise=None)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads back. Calibration stands there only where there is one, as in older records."""
        plain = {
            "template": self.template.source,
            "labels": list(self.labels),
            "words": [list(w) for w in self.words],
            "truncate": self.truncate,
            "soft_first": self.soft_first,
            "max_length": self.max_length,
            "pieces": self.pieces,
        }
        added = {
            "shift": list(self.shift),
            "temperature": self.temperature,
            "calibration": self.calibration,
            "premise": self.premise,
        }
        return plain | (added if self.calibrated or self.calibration != "none" else {})

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Format":
        return Format(
            template=Template.parse(data["template"]),
            labels=tuple(data["labels"]),
            words=tuple(tuple(w) for w in data["words"]),
            truncate=data["truncate"],
            soft_first=data["soft_first"],
            max_length=data["max_length"],
            pieces=data["pieces"],
            shift=tuple(map(float, data.get("shift", ()))),
            temperature=float(data.get("temperature", 1.0)),
            calibration=str(data.get("calibration", "none")),
            premise=data.get("premise"),
        )
