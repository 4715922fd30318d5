"""Describe how a task is put to a model: template, label words, truncation, decoding; all but what is learnt."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any, Literal, final, get_args

from foreword.core.arguments import check_fields
from foreword.core.record import are_distinct, are_texts, is_number, is_whole
from foreword.core.template import Template
from foreword.core.text import shown
from foreword.errors import ConfigError

Truncate = Literal["tail", "head", "middle", "error"]
Extract = Literal["number", "choice", "span"]
Vote = Literal["majority", "likelihood"]
Answers = Literal["labels", "options", "text"]
Pieces = Literal["mean", "sum"]

# Scores are single-precision, and what a calibration makes of them must stay finite.
SHIFT, COLDEST = 1e6, 1e-6
LARGEST = 2**63 - 1  # the largest whole number that a record holds
BEAMS, SAMPLES = 1_000, 10_000  # of one row, each of which takes memory of its own

CLOCK = "strftime_now"  # the name under which a chat template reads the clock
RECORDED_SINCE = "2026-12-01"  # older artefacts do not record the day on which they were made


@final
@dataclass(frozen=True)
class ChatOptions:
    """Hold what a chat template reads beside the messages: the variables that are set (JSON by name), and the clock.

    `clock` is the moment at which the artefact was made, if the template reads the clock. A variable "strftime_now" is
    the moment to show instead. Without either the clock shows the day on which artefacts began to record it.

    Raises: ConfigError for a variable that is not JSON, or a clock that shows no moment.
    """

    set: tuple[tuple[str, str], ...] = ()
    clock: str | None = None

    def __post_init__(self) -> None:
        for name, moment in ((CLOCK, self.variables.get(CLOCK, RECORDED_SINCE)), ("clock", self.clock)):
            if moment is not None and _moment(moment) is None:
                raise ConfigError(
                    f"The chat option {name} is {moment!r}; give a day or a moment, as 2026-12-01 or "
                    "2026-12-01T09:30:00."
                )

    @staticmethod
    def of(variables: "Mapping[str, Any] | ChatOptions | None", clock: str | None = None) -> "ChatOptions":
        """Return the options with these variables; options as they are."""
        if isinstance(variables, ChatOptions):
            return variables
        pairs = []
        for name, value in sorted((variables or {}).items()):
            try:
                text = json.dumps(value, sort_keys=True, allow_nan=False)
            except (TypeError, ValueError):
                text = None
            if not isinstance(name, str) or not name.isidentifier() or text is None:
                raise ConfigError(
                    f"The chat option {name!r} is {value!r}; a name of the chat template's own is needed, with text, a "
                    "number, true, false, null, or lists and objects of them."
                )
            pairs.append((name, text))
        return ChatOptions(tuple(pairs), clock)

    @property
    def variables(self) -> dict[str, Any]:
        """Return the variables that are set, by name."""
        return {name: json.loads(value) for name, value in self.set}

    @property
    def moment(self) -> datetime:
        """Return what the clock shows."""
        moment = _moment(self.variables.get(CLOCK, self.clock or RECORDED_SINCE))
        assert moment is not None, "checked when it was made"
        return moment

    def at(self, clock: str) -> "ChatOptions":
        """Return the same options with this clock."""
        return replace(self, clock=clock)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads back; empty if nothing is set."""
        variables = {"variables": self.variables} if self.set else {}
        return variables | ({} if self.clock is None else {"clock": self.clock})

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "ChatOptions":
        return ChatOptions.of(data.get("variables"), data.get("clock"))


def without_clock(form: Any) -> Any:
    """Return a format, as JSON, without the moment of its clock: the same job on another day is the same job."""
    if not isinstance(form, dict) or not isinstance(form.get("chat_options"), dict):
        return form
    options = {name: value for name, value in form["chat_options"].items() if name != "clock"}
    rest = {name: value for name, value in form.items() if name != "chat_options"}
    return rest | ({"chat_options": options} if options else {})


def _moment(text: Any) -> datetime | None:
    """Read a day or a moment in ISO form, without a zone; return None for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo is None else None


# What sampling may be, for artefacts and for requests: a rule for the value, and the rule in words.
SAMPLING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda value: 0 < value <= 100, "above 0 and at most 100"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "top_k": (lambda value: value >= 0, "0 (all tokens) or more"),
    "stop_strings": (all, "texts that are not empty"),
}


@final
@dataclass(frozen=True)
class Decoding:
    """Describe how an answer is generated; names that transformers' GenerationConfig has mean the same.

    `top_k` 0 and `top_p` 1 leave every token in. The text ends before the first of `stop_strings`.
    `repetition_penalty` and `no_repeat_ngram_size` (0: none) look at what was generated, not at the row, as in
    transformers for a prompt of embeddings. `extract` says what in the text is the answer (None: all of it). If
    `num_return_sequences` is above 1 the samples of a row vote, each once ("majority") or with the weight exp(mean
    log-probability of its tokens) ("likelihood"; Wang et al. 2022). Sampling begins with `seed`; with `early_stop` it
    ends when no other answer can win. `conclude` is text put after what was generated; the label words are then scored
    after it (Kojima et al. 2022).

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
        _refuse_beyond_use(vars(self))
        greedy = "; do_sample=False is greedy"
        for name, right, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
            ("length_penalty", math.isfinite(self.length_penalty), "a finite number"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 100, "above 0 and at most 100; 1 is none"),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size >= 0, "0 (none) or more"),
            *(
                (name, rule(getattr(self, name)), allowed + greedy * (name == "temperature"))
                for name, (rule, allowed) in SAMPLING.items()
            ),
            ("num_beams", 1 <= self.num_beams <= BEAMS, f"between 1 and {BEAMS:,}"),
            ("num_return_sequences", 1 <= self.num_return_sequences <= SAMPLES, f"between 1 and {SAMPLES:,}"),
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
        """Return what differs from the defaults."""
        defaults = asdict(Decoding())
        changed = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        return changed | ({"stop_strings": list(self.stop_strings)} if self.stop_strings else {})

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Decoding":
        """Read what `to_json` returns. Raises: ConfigError for a part of another kind, or an unknown one."""
        known = {field.name for field in fields(Decoding)}
        if not isinstance(data, dict) or not data.keys() <= known:
            raise ConfigError(f"Decoding is {shown(data)}; it may have {', '.join(sorted(known))}.")
        _refuse_beyond_use(data)
        if not isinstance(data.get("stop_strings", []), list):
            raise ConfigError(f"Decoding: stop_strings is {shown(data['stop_strings'])}; it must be a list of texts.")
        return Decoding(**{**data, "stop_strings": tuple(data.get("stop_strings", ()))})


@dataclass(frozen=True)
class Format:
    """Hold a template with its label words; every artefact records it whole.

    `labels` are the label names in order and `words` their label words, one or more each; both are empty if each row
    brings its own options. `soft_first` puts leading slots before [CLS] or BOS instead of after it. `max_length`
    limits a row in tokens, prompt included; None means the model's context. `pieces` says how a masked model scores a
    word of several tokens: the mean of the masks' log-probabilities, or their sum. `decoding` says how the model
    generates its answer; None if label words are scored. `chat_options` are what a chat template reads too.

    Calibration is part of the format: `shift` is added to the labels' log-scores (empty: nothing is), which are then
    divided by `temperature`; `calibration` names the rule that they came from. If rows bring their own options there is
    no shift per label: the scores of the same options after `premise` are subtracted instead.
    """

    template: Template
    labels: tuple[str, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()
    truncate: Truncate = "tail"
    soft_first: bool = False
    max_length: int | None = None
    pieces: Pieces = "mean"
    decoding: Decoding | None = None
    shift: tuple[float, ...] = ()
    temperature: float = 1.0
    calibration: str = "none"
    premise: str | None = None
    chat_options: ChatOptions = ChatOptions()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.shift and (len(self.shift) != len(self.labels) or not all(_within(n, SHIFT) for n in self.shift)):
            raise ConfigError(
                f"The calibration has {len(self.shift)} numbers for {len(self.labels)} labels; each label needs one "
                f"finite number, between -{SHIFT:g} and {SHIFT:g}."
            )
        if not (_within(self.temperature, 1 / COLDEST) and self.temperature >= COLDEST):
            raise ConfigError(
                f"The temperature is {shown(self.temperature)}; it must be a finite number above 0, between "
                f"{COLDEST:g} and {1 / COLDEST:g}."
            )

    @property
    def answers(self) -> Answers:
        """Return what an answer is: one of the labels, one of the row's own options, or a text."""
        if self.labels:
            return "labels"
        chosen = self.decoding is None or self.decoding.extract == "choice" or self.decoding.conclude is not None
        return "options" if chosen else "text"

    @property
    def calibrated(self) -> bool:
        """Return whether scores are changed after the model gave them."""
        return bool(self.shift) or self.temperature != 1.0 or self.premise is not None

    def without_labels(self) -> "Format":
        """Return the format with nothing to choose from, for generation and for hidden states."""
        return replace(self, labels=(), words=(), shift=(), temperature=1.0, calibration="none", premise=None)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads back. Decoding, calibration and chat options are there only if set, as in older
        records."""
        decoding = {} if self.decoding is None else {"decoding": self.decoding.to_json()}
        chat = self.chat_options.to_json()
        plain = {
            "template": self.template.source,
            "labels": list(self.labels),
            "words": [list(w) for w in self.words],
            "truncate": self.truncate,
            "soft_first": self.soft_first,
            "max_length": self.max_length,
            "pieces": self.pieces,
            **decoding,
            **({"chat_options": chat} if chat else {}),
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
        """Read what `to_json` returns. Raises: ConfigError for a part of another kind."""
        _check_parts(data)
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
            calibration=data.get("calibration", "none"),
            premise=data.get("premise"),
            chat_options=ChatOptions.from_json(data.get("chat_options") or {}),
        )


def _refuse_beyond_use(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, int | float) and not _within(value, LARGEST):
            raise ConfigError(f"Decoding: {name} is {shown(value)}, which is beyond all use.")


def _check_parts(data: Any) -> None:
    """Check the parts of a format's record. Raises: ConfigError for one that is missing or of another kind."""
    parts = ("template", "labels", "words", "truncate", "soft_first", "max_length", "pieces")
    absent = parts if not isinstance(data, dict) else [name for name in parts if name not in data]
    if absent:
        raise ConfigError(f"The format has no {' and no '.join(absent)}.")
    labels, words, longest, premise = data["labels"], data["words"], data["max_length"], data.get("premise")
    texts = are_texts(labels) and isinstance(words, list) and all(are_texts(w) and w for w in words)
    rules = {
        "template": (isinstance(data["template"], str | list), "a text or a list of messages"),
        "labels": (texts and are_distinct(labels), "a list of different texts"),
        "words": (texts and len(words) == len(labels), "a list of texts for each label"),
        "truncate": (data["truncate"] in get_args(Truncate), f"one of {', '.join(get_args(Truncate))}"),
        "soft_first": (isinstance(data["soft_first"], bool), "true or false"),
        "max_length": (longest is None or is_whole(longest, 1), "a whole number above 0, or null"),
        "pieces": (data["pieces"] in get_args(Pieces), f"one of {', '.join(get_args(Pieces))}"),
        "shift": (
            isinstance(shift := data.get("shift", []), list) and all(is_number(n, -SHIFT, SHIFT) for n in shift),
            f"a list of numbers between -{SHIFT:g} and {SHIFT:g}",
        ),
        "temperature": (
            is_number(data.get("temperature", 1.0), COLDEST, 1 / COLDEST),
            f"a number between {COLDEST:g} and {1 / COLDEST:g}",
        ),
        "calibration": (isinstance(data.get("calibration", "none"), str), "a text"),
        "premise": (isinstance(premise, str | None), "a text or null"),
        "chat_options": (isinstance(data.get("chat_options", {}), dict), "an object"),
    }
    for name, (right, allowed) in rules.items():
        if not right:
            raise ConfigError(f"The format has {name} {shown(data.get(name))}; it must be {allowed}.")


def _within(value: Any, most: int | float) -> bool:
    """Return whether a number is finite and between -most and most; a whole one may be beyond all floats."""
    return -most <= value <= most
