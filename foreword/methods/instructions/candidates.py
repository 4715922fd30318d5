"""Score the candidates of a search on each row; every value is written to the search state before it is used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.core.template import AnswerPlace, Field, Template, Turn
from foreword.core.template import Literal as Words
from foreword.errors import ConfigError, DataError, ForewordError
from foreword.inference.answers import answer_rows, text_values
from foreword.inference.batched import stacked_scores
from foreword.inference.likelihood import LikelihoodRequest, text_likelihoods
from foreword.inference.scoring import encode_rows
from foreword.methods.instructions.halving import Cells
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder
from foreword.models.encoding.tokenise import Pieces
from foreword.tasks.rows import Row
from foreword.tasks.task import Task
from foreword.training.answer_log import key_of
from foreword.training.contract import SearchState

Score = Literal["likelihood", "metric"]
CHUNK = 128  # rows read between two writes to the state
NONE = HardPrompt.empty()


@final
@dataclass(frozen=True)
class Candidate:
    """Hold a candidate: its words ("" for the template as written), their source, and the format with these words."""

    text: str
    source: str
    format: Format


def with_instruction(form: Format, instruction: str, kind: str, frame: str = "template") -> Format:
    """Return the format with an instruction: in front of its own template, or in the frame of Zhou et al. 2022.

    Raises: ConfigError for a template with slots, or a chat in the paper's frame.
    """
    template = form.template
    if template.slots:
        raise ConfigError("A search for words needs a template without {soft:...} slots; remove them.")
    if frame == "paper":
        if template.chat:
            raise ConfigError("frame=paper is one text, and this template is a list of messages; use frame=template.")
        fields = [p for p in template.parts if isinstance(p, Field)]
        several = len(fields) > 1
        parts: list[Any] = [Words(f"Instruction: {instruction}\n")] if instruction else []
        for field in fields:
            parts += [Words(f"{field.name.replace('_', ' ').capitalize()}: " if several else "Input: "), field]
            parts.append(Words("\n"))
        parts += [Words("Output: "), template.answer or AnswerPlace("mask" if kind == "masked" else "answer")]
        return replace(form, template=Template((Turn("", _joined(parts)),)))
    if not instruction:
        return form
    first = template.turns[0]
    space = "\n\n" if template.chat else "\n" if kind == "causal" else " "
    turn = Turn(first.role, _joined([Words(instruction + space), *first.parts]))
    return replace(form, template=Template((turn, *template.turns[1:])))


def _joined(parts: Sequence[Any]) -> tuple[Any, ...]:
    """Return the parts with neighbouring literals merged, as parsing the source gives them."""
    results: list[Any] = []
    for part in parts:
        if isinstance(part, Words) and results and isinstance(results[-1], Words):
            results[-1] = Words(results[-1].text + part.text)
        else:
            results.append(part)
    return tuple(results)


def usable(lm: FrozenLM, text: str, form: Format) -> bool:
    """Return whether the candidate's words are plain text to the tokenizer and its template leaves room for a row."""
    if any(isinstance(p, int) for p in Pieces.of(lm.tokenizer, lm.kind).split_special(text)):
        return False  # a proposal must not write special tokens into a template
    try:
        encoder = Encoder.build(lm, form)
    except ForewordError:
        return False
    return 2 * encoder.own <= encoder.room


@final
class CandidatePool:
    """Hold candidates without repetition, in the order in which they came."""

    def __init__(self, lm: FrozenLM, build: Callable[[str], Format]) -> None:
        self._lm, self._build = lm, build
        self._seen: set[str] = set()
        self.arms: list[Candidate] = []
        self.refused = 0

    def add_as_written(self) -> None:
        """Add the template as the person wrote it, whatever its length: another choice must beat it."""
        self._seen.add("")
        self.arms.append(Candidate("", "as written", self._build("")))

    def add(self, text: str, source: str) -> bool:
        """Add a candidate if it is new and usable; return whether it was added."""
        key = " ".join(text.lower().split()).rstrip(".")
        if key in self._seen:
            return False
        self._seen.add(key)
        form = self._build(text)
        if not usable(self._lm, text, form):
            self.refused += 1
            return False
        self.arms.append(Candidate(text, source, form))
        return True


@final
class CandidateScorer:
    """Score candidates on the selection rows by a log-probability of the right answer, or by the metric.

    For answers in text the log-likelihood is a mean over tokens. `read` counts evaluations.
    """

    def __init__(self, lm: FrozenLM, task: Task, rows: Sequence[Row], score: Score, state: SearchState) -> None:
        for row in rows:
            if row.label is None and not row.targets:
                raise DataError(f"{row.where} has no answer; a search needs one in every row that it chooses on.")
        self._lm, self._task, self._rows, self._state = lm, task, rows, state
        self._score: Score = score
        self.read = 0
        self._total = 0

    def report_up_to(self, total: int) -> None:
        """Report every chunk from now on, out of `total` evaluations; its loss is minus its candidates' mean value."""
        self._total = total
        self._state.begin()

    def values(self, arms: Sequence[Candidate], cells: Cells, score: Score | None = None) -> list[list[float]]:
        """Return a value for each row of each cell, by the scorer's score unless another is given."""
        kind: Score = score or self._score
        return [values for chunk in _chunks(cells) for values in self._chunk(arms, chunk, kind)]

    def _chunk(self, arms: Sequence[Candidate], cells: Cells, score: Score) -> list[list[float]]:
        """Return the values of each cell of a chunk.

        A chunk is stored whole and read whole, so that one read again after a kill is batched with the same rows, and
        so has the same last digits.
        """
        task, rows = self._task, self._rows
        kind = "labels" if task.metric is None else f"{score} {task.metric}"
        keys = [
            [key_of(kind, arms[arm].format.to_json(), rows[r].text(), rows[r].label, rows[r].targets) for r in some]
            for arm, some in cells
        ]
        known = [[self._state.get(key) for key in own] for own in keys]
        if any(value is None for own in known for value in own):
            parts = [(arms[arm].format, [rows[r] for r in some]) for arm, some in cells]
            if task.metric is None:
                known = _label_values(self._lm, parts)
            elif score == "metric":
                known = _metric_values(self._lm, task, parts)
            else:
                known = _text_values(self._lm, parts)
            self._state.put({k: v for ks, vs in zip(keys, known, strict=True) for k, v in zip(ks, vs, strict=True)})
        self.read += sum(map(len, keys))
        index = 1 if score == "metric" else 0
        results = [[float(v[index] if isinstance(v, list) else v) for v in own] for own in known]
        if self._total:
            flat = [v for own in results for v in own]
            read = min(self.read, self._total)
            self._state.report(read, self._total, -sum(flat) / len(flat), read)
        return results


Parts = Sequence[tuple[Format, Sequence[Row]]]


def _label_values(lm: FrozenLM, parts: Parts) -> list[list[Any]]:
    """Return for each row the log-probability of the right label, and whether it is the likeliest label."""
    encoded = [encode_rows(lm, form, rows) for form, rows in parts]
    results = []
    for score_NC, (_, rows) in zip(stacked_scores(lm, [NONE] * len(parts), encoded), parts, strict=True):
        logprob_NC = score_NC.double().log_softmax(-1)
        right = [row.label for row in rows]
        results.append(
            [[float(p_C[c]), float(int(p_C.argmax()) == c)] for p_C, c in zip(logprob_NC, right, strict=True)]
        )
    return results


def _text_values(lm: FrozenLM, parts: Parts) -> list[list[float]]:
    """Return the mean log-likelihood of the tokens of each row's canonical answer."""
    asked = [LikelihoodRequest(NONE, form, rows, [row.targets[0] for row in rows]) for form, rows in parts]
    return [[float(v) for v in found.mean_N] for found in text_likelihoods(lm, asked)]


def _metric_values(lm: FrozenLM, task: Task, parts: Parts) -> list[list[float]]:
    """Return the task's metric of the text that the model writes after each row."""
    pairs = [(Artefact(NONE, form, "search", {}, 0, {}, {}), rows) for form, rows in parts]
    return [
        [float(v) for v in text_values(task, answered, rows)]
        for answered, (_, rows) in zip(answer_rows(lm, pairs), pairs, strict=True)
    ]


def _chunks(cells: Cells) -> list[list[tuple[int, range]]]:
    """Split cells into parts of at most CHUNK rows; a cell with more is a part of its own."""
    parts: list[list[tuple[int, range]]] = []
    size = 0
    for arm, rows in cells:
        if not parts or size + len(rows) > CHUNK:
            parts.append([])
            size = 0
        parts[-1].append((arm, rows))
        size += len(rows)
    return parts


def answer_of(form: Format, row: Row) -> str:
    """Return the row's canonical target, its option, or its label's first word.

    Raises: DataError for a row without an answer.
    """
    if row.targets:
        return row.targets[0]
    if row.label is None:
        raise DataError(f"{row.where} has no answer; proposals need one in every training row.")
    return row.options[row.label] if row.options else form.words[row.label][0]
