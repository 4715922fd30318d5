"""How a task is put to a model: the template, the label words and the truncation; everything but what is learnt."""

from dataclasses import dataclass
from typing import Any, Literal

from foreword.core.template import Template

Truncate = Literal["tail", "head", "middle", "error"]


@dataclass(frozen=True)
class Format:
    """A template with its label words, recorded whole in every artefact.

    `labels` are the label names in order and `words` their label words, one or more each; both are empty where each row
    brings its own options. `soft_first` puts leading slots before [CLS] or BOS instead of after it. `max_length`
    limits a row in tokens, prompt included; None means the model's context. `pieces` says how a masked model scores a
    word of several pieces: the mean of the masks' log-probabilities, or their sum.
    """

    template: Template
    labels: tuple[str, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()
    truncate: Truncate = "tail"
    soft_first: bool = False
    max_length: int | None = None
    pieces: Literal["mean", "sum"] = "mean"

    def to_json(self) -> dict[str, Any]:
        return {
            "template": self.template.source,
            "labels": list(self.labels),
            "words": [list(w) for w in self.words],
            "truncate": self.truncate,
            "soft_first": self.soft_first,
            "max_length": self.max_length,
            "pieces": self.pieces,
        }

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
        )
