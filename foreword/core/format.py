"""How a task is put to a model: the template, the label words and the truncation; everything but what is learnt."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, final

from foreword.core.arguments import check_fields
from foreword.core.template import Template
from foreword.core.text import shown
from foreword.errors import ConfigError

Truncate = Literal["tail", "head", "middle", "error"]
Extract = Literal["number", "choice", "span"]
Vote = Literal["majority", "likelihood"]
Answers = Literal["labels", "options", "text"]


@final
@dataclass(frozen=True)
class Decoding:
    """How an answer is written; the names are those of transformers' GenerationConfig where it has them.

    `top_k` 0 and `top_p` 1 leave every piece in. The text ends before the first of `stop_strings`. Of
    `repetition_penalty` and `no_repeat_ngram_size` (0: none) what was written counts, not the row, as in transformers
    where a prompt is not words. `extract` says what
    in the text is the answer (None: all of it). With `num_return_sequences` above 1 the samples of a row vote, each
    once ("majority") or with the weight exp(mean log-probability of its pieces) ("likelihood"; Wang et al. 2022);
    sampling goes on from `seed`, and with `early_stop` it ends where the lead cannot be beaten. `conclude` is text put
    after what was written, after which the label words are scored instead of looked for (Kojima et al. 2022).

    Raises: ConfigError for a value out of range, or for samples that would all be equal.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    stop_strings: tuple[str, ...] = ()
    extract: Extract | None = None
    num_return_sequences: int = 1
    vote: Vote = "majority"
    seed: int = 0
    early_stop: bool = True
    conclude: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name, right, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
            ("length_penalty", math.isfinite(self.length_penalty), "a finite number"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 100, "above 0 and at most 100; 1 is none"),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size >= 0, "0 (none) or more"),
            ("temperature", 0 < self.temperature <= 100, "above 0 and at most 100; do_sample=False is greedy"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (all pieces) or more"),
            ("num_beams", self.num_beams >= 1, "1 or more"),
            ("num_return_sequences", self.num_return_sequences >= 1, "1 or more"),
            ("stop_strings", all(self.stop_strings), "texts that are not empty"),
            ("extract", self.extract in (None, "number", "choice", "span"), "none, number, choice or span"),
            ("vote", self.vote in ("majority", "likelihood"), "majority or likelihood"),
        ):
            if not right:
                raise ConfigError(f"Decoding: {name} is {shown(getattr(self, name))}; it must be {allowed}.")
        if self.num_return_sequences > 1 and not self.do_sample:
            raise ConfigError(
                f"Decoding: {self.num_return_sequences} samples of a row without do_sample are one text; set do_sample."
            )
        if self.num_beams > 1 and self.do_sample:
            raise ConfigError("Decoding: beams and sampling were both asked for; choose one.")

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults."""
        plain, own = asdict(Decoding()), asdict(self)
        told = {name: value for name, value in own.items() if value != plain[name]}
        return told | ({"stop_strings": list(self.stop_strings)} if self.stop_strings else {})

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Decoding":
        return Decoding(**{**data, "stop_strings": tuple(data.get("stop_strings", ()))})


@dataclass(frozen=True)
class Format:
    """A template with its label words, recorded whole in every artefact.

    `labels` are the label names in order and `words` their label words, one or more each; both are empty where each row
    brings its own options. `soft_first` puts leading slots before [CLS] or BOS instead of after it. `max_length`
    limits a row in tokens, prompt included; None means the model's context. `pieces` says how a masked model scores a
    word of several pieces: the mean of the masks' log-probabilities, or their sum. `decoding` says how the model writes
    its answer; None where label words are scored.

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
    decoding: Decoding | None = None
    shift: tuple[float, ...] = ()
    temperature: float = 1.0
    calibration: str = "none"
    premise: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.shift and (len(self.shift) != len(self.labels) or not all(map(math.isfinite, self.shift))):
            raise ConfigError(
                f"The calibration has {len(self.shift)} numbers for {len(self.labels)} labels; each label needs one "
                "finite number."
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"The temperature is {shown(self.temperature)}; it must be a finite number above 0.")

    @property
    def answers(self) -> Answers:
        """What an answer is: one of the labels, one of the row's own options, or a text."""
        if self.labels:
            return "labels"
        chosen = self.decoding is None or self.decoding.extract == "choice" or self.decoding.conclude is not None
        return "options" if chosen else "text"

    @property
    def calibrated(self) -> bool:
        """Whether scores are changed after they were read."""
        return bool(self.shift) or self.temperature != 1.0 or self.premise is not None

    def without_labels(self) -> "Format":
        """The same rows with nothing to choose from, for text that goes on and for hidden states."""
        return replace(self, labels=(), words=(), shift=(), temperature=1.0, calibration="none", premise=None)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads back. Decoding and calibration stand there only where there is one, as in older
        records."""
        decoding = {} if self.decoding is None else {"decoding": self.decoding.to_json()}
        plain = {
            "template": self.template.source,
            "labels": list(self.labels),
            "words": [list(w) for w in self.words],
            "truncate": self.truncate,
            "soft_first": self.soft_first,
            "max_length": self.max_length,
            "pieces": self.pieces,
            **decoding,
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
            decoding=Decoding.from_json(data["decoding"]) if data.get("decoding") is not None else None,
            shift=tuple(map(float, data.get("shift", ()))),
            temperature=float(data.get("temperature", 1.0)),
            calibration=str(data.get("calibration", "none")),
            premise=data.get("premise"),
        )
