"""Encode requests as rows of tokens: read prompts from disk and tokenise texts, on a separate thread."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, final

from foreword.core.format import SAMPLING, Format
from foreword.core.template import Template
from foreword.errors import ConfigError, DataError
from foreword.models.base import FrozenLM
from foreword.models.decoding import Chooser, IncrementalText
from foreword.models.encoding.chat_template import frozen
from foreword.models.encoding.encoder import Encoder
from foreword.models.encoding.text_spans import text_spans
from foreword.serving.bank import Entry, PromptBank
from foreword.serving.jobs import Judging, Labelling, TextJob
from foreword.serving.protocol import Judged, RowRequest, Sampling
from foreword.serving.store import Version
from foreword.tasks.input_rows import row_of
from foreword.tasks.rows import Row

ANSWER, NUMBER = 2**24, 24  # characters of one answer, and of a probability in it
PLAIN = "{text}{answer}"  # how the model alone is given a text


@final
@dataclass(frozen=True, eq=False)
class RequestEncoder:
    """Encode rows for the prompts of a bank. A text and what is to be written after it have `columns` at most, and all
    rows of a request that are labelled `work` tokens."""

    lm: FrozenLM
    bank: PromptBank
    columns: int
    work: int

    def labelling(self, asked: Sequence[RowRequest], result: Future[list[Judged]]) -> list[Labelling]:
        """Return the rows of one request, in order. Raises: ForewordError that says what is wrong with one of them."""
        whole = Judging(result, [None] * len(asked), len(asked))
        jobs: dict[int, Labelling] = {}
        own: dict[Version, list[int]] = {}
        for index, one in enumerate(asked):
            if one.version is None:
                raise ConfigError(
                    f"{self.lm.name} alone has no labels; name a prompt that was made for classification."
                )
            own.setdefault(one.version, []).append(index)
        for version, indices in own.items():
            entry = self.bank.entry(version)
            if not entry.artefact.format.labels and not all(asked[i].options for i in indices):
                raise ConfigError(f"{version.name} has no labels of its own; give each row its options.")
            rows = [_row(entry, asked[i], labelled=True) for i in indices]
            for index, row, encoded in zip(indices, rows, entry.labels.encode_rows(rows), strict=True):
                names = row.options or entry.artefact.format.labels
                assert encoded.plan is not None, "labels or options are there"
                longest = len(encoded) + entry.value.text_start
                parts = encoded.plan.parts(self.lm.kind == "masked" or self.lm.trie_fits(longest))
                jobs[index] = Labelling(whole, index, entry, entry.placed(self.lm, encoded), names, parts)
        self._check_work(list(jobs.values()))
        return [jobs[index] for index in range(len(asked))]

    def _check_work(self, jobs: Sequence[Labelling]) -> None:
        """Check the size of one request. Raises: ConfigError if its rows have more tokens than it may, or its answer
        more characters."""
        tokens = sum(job.row.tokens for job in jobs)
        if tokens > self.work:
            words = max(job.row.tokens - len(job.row.ids_S) for job in jobs)
            raise ConfigError(
                f"The {len(jobs)} rows take {tokens:,} tokens, of which label words or options are up to {words:,} a "
                f"row, and a request may take {self.work:,}; send fewer rows, or fewer or shorter options."
            )
        length = {id(job.names): sum(map(len, job.names)) + NUMBER * len(job.names) for job in jobs}
        size = sum(length[id(job.names)] for job in jobs)
        if size > ANSWER:
            raise ConfigError(
                f"The probabilities of all labels of {len(jobs)} rows are an answer of some {size:,} characters, and "
                f"{ANSWER:,} are allowed; send fewer rows."
            )

    def writing(self, asked: RowRequest, writing: TextJob) -> None:
        """Fill in the row that a text follows. Raises: ForewordError that says what is wrong."""
        self._check_sampling(writing.sampling, 0 if asked.echo else 1)
        entry, encoder, row = self._to_continue(asked)
        ahead = 0 if entry is None else entry.value.text_start
        room = min(encoder.room, self.columns - ahead) - writing.sampling.max_tokens
        if encoder.own > room:
            raise ConfigError(
                f"max_tokens {writing.sampling.max_tokens} leaves no room for the text: a row may have "
                f"{min(self.columns, self.lm.dims.context)} positions, of which the prompt and its template take "
                f"{ahead + encoder.own}; ask for fewer."
            )
        [encoded] = replace(encoder, room=room).encode_rows([row])
        if asked.echo and writing.sampling.logprobs is not None:
            [name] = row.fields  # one text was given, for a template with one field
            writing.spans = text_spans(encoder, row, encoded, name)
        tail = [int(i) for i, slot in zip(encoded.ids_S, encoded.slot_S, strict=True) if slot < 0]
        placed = encoded if entry is None else entry.placed(self.lm, encoded, writing.sampling.max_tokens)
        if any(column <= placed.shared for column, _ in writing.spans[1:]):
            placed = replace(placed, shared=0)  # what is compiled cannot say how likely its own tokens are
        writing.entry, writing.row = entry, placed
        writing.chooser = Chooser.of(writing.sampling)
        writing.writer = IncrementalText(self.lm.tokenizer, tail, writing.sampling.stop)

    def _check_sampling(self, sampling: Sampling, least: int) -> None:
        if self.lm.kind != "causal":
            raise ConfigError(f"{self.lm.name} is a masked model, which labels texts and cannot continue them.")
        self.lm.require_prefix()
        if sampling.max_tokens < least:
            raise ConfigError(f"max_tokens is {sampling.max_tokens!r}; it must be {least} or more.")
        for name, (rule, allowed) in SAMPLING.items():
            name = name.removesuffix("_strings")
            value, greedy = getattr(sampling, name), "0 (greedy), or " * (name == "temperature")
            if not rule(value) and not (greedy and value == 0):
                raise ConfigError(f"{name} is {value!r}; it must be {greedy}{allowed}.")

    def _to_continue(self, asked: RowRequest) -> tuple[Entry | None, Encoder, Row]:
        """Return the prompt (None for the model alone), the encoder that puts a row to the model, and the row."""
        if asked.version is not None:
            entry = self.bank.entry(asked.version)
            return entry, entry.plain, _row(entry, asked, labelled=False)
        if asked.messages:
            if not self.lm.tokenizer.chat_template:
                raise ConfigError(f"{self.lm.name} has no chat template; use completions, or a prompt by its name.")
            turns = [{"role": role, "content": f"{{text{n}}}"} for n, (role, _) in enumerate(asked.messages)]
            fields = {f"text{n}": content for n, (_, content) in enumerate(asked.messages)}
            form = self._today(Format(Template.parse(turns), truncate="error"))
        elif asked.text is not None:
            fields, form = {"text": asked.text}, Format(Template.parse(PLAIN), truncate="error")
        else:
            raise DataError(
                f"{asked.where}: {self.lm.name} alone reads a text or messages, not fields; give one of them."
            )
        return None, self.bank.encoder(form, 0), Row(fields, None, (), asked.where)

    def _today(self, form: Format) -> Format:
        """Return the format with today as its clock: the model alone answers as of the day of the request.

        The hour is left at midnight, so that the rows of a day share what is compiled for them.
        """
        dated = frozen(self.lm.tokenizer, form)
        if dated.chat_options.clock is None:
            return dated
        return replace(dated, chat_options=dated.chat_options.at(dated.chat_options.clock.partition("T")[0]))


def _row(entry: Entry, asked: RowRequest, *, labelled: bool) -> Row:
    """Return a request as a row of the prompt's fields. Raises: DataError, ConfigError that say what is missing."""
    given: Any = dict(asked.fields)
    if asked.messages:
        if len(asked.messages) != 1 or asked.messages[0][0] != "user":
            raise ConfigError(
                f"{asked.where}: {entry.version.name} has its own instruction, and reads one message of the user; "
                "give that alone."
            )
        given = asked.messages[0][1]
    elif asked.text is not None:
        given = asked.text
    fields = entry.artefact.fields
    if isinstance(given, str):
        if len(fields) != 1:
            raise DataError(f"{asked.where}: {entry.version.name} reads {', '.join(fields)}; give each by its name.")
        given = {fields[0]: given}
    return row_of(entry.artefact, given, asked.where, labelled=labelled, options=asked.options)
