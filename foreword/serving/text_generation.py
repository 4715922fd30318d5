"""Continue texts: one batch that rows join when there is a place, and leave when they end."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch

from foreword.core.shapes import Float, Int, Tensor
from foreword.errors import ModelError
from foreword.models.base import FrozenLM, Inputs, RowCache
from foreword.models.decoding import choose
from foreword.models.encoding.batch import Encoded, collate, prepare
from foreword.models.generate import as_cached
from foreword.serving.bank import PromptBank
from foreword.serving.fair_queue import Turns
from foreword.serving.jobs import Room, TextJob, columns, fail, is_fatal, settle
from foreword.serving.mixed_batch import attempt, mix, prefix_of
from foreword.serving.protocol import Delta, Finish, Generated, Piece, Sampling

LOGITS = 2**22  # of pieces that were given, at once


def continues(lm: FrozenLM) -> bool:
    """Return whether the server can continue text with this model."""
    return lm.kind == "causal" and lm.takes_prefix


def widest(lm: FrozenLM, room: Room) -> int:
    """Return the longest row that generation has room for: a power of two of columns, or the whole context."""
    dims = lm.dims
    column = 2 * dims.layers * dims.heads * dims.head_size * torch.finfo(lm.dtype).bits // 8
    fits = room.cache // (room.rows * column)
    if not continues(lm) or 1 << (dims.context - 1).bit_length() <= fits:
        return dims.context
    if fits < 64:
        raise ModelError(
            f"Generation of {room.rows} rows at once with a cache of {room.cache:,} bytes leaves "
            f"{fits} positions a row; give it a larger cache, or fewer rows."
        )
    return 1 << (fits.bit_length() - 1)


def _columns(job: TextJob, row: Encoded) -> list[int]:
    """Return the columns of the row as it is read that predict the pieces to be shown, except the first piece: each
    piece is predicted by the column before it."""
    assert job.row is not None, "rows are read before they wait"
    gone = len(job.row.ids_S) - len(row.ids_S)
    return [column - 1 - gone for column, _ in job.spans[1:]]


def _reading(before: Sequence[Sequence[int]], answer_B1: Int[Tensor, "B 1"]) -> Int[Tensor, "B R"]:
    """Return the columns read of each row, padded with the row's answer column, which comes last."""
    read_BR = answer_B1.repeat(1, 1 + max(map(len, before)))
    for read_R, columns_ in zip(read_BR, before, strict=True):
        read_R[: len(columns_)] = torch.tensor(columns_, dtype=read_R.dtype)
    return read_BR


@final
@dataclass(eq=False)
class Writers:
    """Continue texts with one model on one thread; `places` texts at once. Without a cache no text comes here.

    The last few places are for keys that have no text under way, so that one key's long texts do not keep another's
    short one waiting until they end. An error ends the texts that it concerns; if these are not known, all that are
    under way.
    """

    lm: FrozenLM
    bank: PromptBank
    cache: RowCache | None
    places: int
    waiting: Turns[TextJob] = field(default_factory=Turns[TextJob])
    under_way: list[TextJob] = field(default_factory=list)
    batches: int = 0
    pieces: int = 0

    def start(self) -> None:
        """Prefill as many waiting texts as there are places, one pass at a time."""
        taken: list[TextJob] = []
        tokens = 0
        while len(self.under_way) + len(taken) < self.places:
            job = self.waiting.next(self._served(taken))
            if job is None:
                break
            assert job.row is not None, "rows are read before they wait"
            if taken and tokens + len(job.row.ids_S) > self.lm.batch_tokens:
                break
            tokens += len(job.row.ids_S)
            self.waiting.take(job)
            taken.append(job)
        if taken:
            attempt(self._prefill, taken, [job.result for job in taken])

    def _served(self, taken: Sequence[TextJob]) -> frozenset[str]:
        """Return the keys that may not take a place: those with a text under way, if only reserved places are left.

        Without keys all texts are of one client, for which no place is left empty.
        """
        reserved = 0 if self.places == 1 else max(1, self.places // 8)
        if len(self.under_way) + len(taken) < self.places - reserved:
            return frozenset()
        return frozenset(job.by for job in (*self.under_way, *taken) if job.by)

    def _prefill(self, jobs: Sequence[TextJob]) -> None:
        assert self.cache is not None, "masked models do not come here"
        first = len(self.cache)
        assert first == len(self.under_way), "each text under way is a row of the cache"
        try:
            pairs = [(job.entry, job.row) for job in jobs if job.row is not None]
            batch = mix(self.lm, self.bank, pairs)
            rows = batch.rows
            often = Counter(job.entry.version for job in (*self.under_way, *jobs) if job.entry is not None)
            for (entry, _), task in zip(pairs, batch.task_of, strict=True):
                shared = entry.version if entry is not None and often[entry.version] > 1 else None
                self.cache.add(as_cached(self.lm, prefix_of(batch.bank, task)), shared)
            soft = replace(batch.bank, keys_TNQHK=None, values_TNQHK=None)  # the cache has the prefixes
            inputs, _ = prepare(self.lm, collate(rows), soft, torch.tensor(batch.task_of))
            before = [_columns(job, row) for job, row in zip(jobs, rows, strict=True)]
            if any(before):
                inputs = replace(inputs, read_BR=_reading(before, inputs.read_BR))
            hidden_BRD = self._hidden(inputs, first, [len(row.ids_S) for row in rows])
            for job, columns_, hidden_RD in zip(jobs, before, hidden_BRD, strict=True):
                job.prompt = self._prompt(job, hidden_RD[: len(columns_)])
            logits_BV = self.lm.vocabulary_logits(hidden_BRD[:, -1])
        except Exception as error:
            try:
                while len(self.cache) > first:
                    self.cache.drop(len(self.cache) - 1)
            except Exception:
                self._start_over(error)
            raise
        self.under_way += jobs
        for job in jobs:
            if job.prompt and job.on_delta is not None and not job.result.done():
                job.on_delta(Delta("", prompt=job.prompt))
        self._advance(jobs, logits_BV)
        self.batches += 1

    def _prompt(self, job: TextJob, hidden_RD: Float[Tensor, "R D"]) -> tuple[Piece, ...]:
        """Return the pieces of the text that was given, the first without a log-probability.

        Raises: ModelError for logits that are not numbers.
        """
        if not job.spans:
            return ()
        assert job.row is not None, "rows are read before they wait"
        pieces = [Piece(job.spans[0][1], None)]
        step = max(1, LOGITS // self.lm.dims.vocab)
        for start in range(0, len(hidden_RD), step):
            logits_RV = self.lm.vocabulary_logits(hidden_RD[start : start + step])
            if not bool(logits_RV.isfinite().all()):
                raise ModelError("The model gave logits that are not numbers; use another --dtype.")
            for logits_V, (column, text) in zip(logits_RV, job.spans[1 + start :], strict=False):
                pieces.append(self._piece(text, int(job.row.ids_S[column]), logits_V, job.sampling))
        return tuple(pieces)

    def step(self) -> None:
        """Generate one more piece of every text that is under way."""
        assert self.cache is not None or not self.under_way, "masked models write nothing"
        self._let_go()
        if not self.under_way:
            return
        jobs = list(self.under_way)
        try:
            count = len(jobs)
            ids_B1 = torch.tensor([[job.last] for job in jobs], device=self.lm.device)
            zeros_B1 = torch.zeros(count, 1, dtype=torch.long, device=self.lm.device)
            inputs = Inputs(self.lm.embed(ids_B1), torch.ones_like(zeros_B1, dtype=torch.bool), zeros_B1, zeros_B1)
            logits_BV = self.lm.vocabulary_logits(self._hidden(inputs, 0, [1] * count)[:, 0])
        except Exception as error:
            self._start_over(error)
            return
        self._advance(jobs, logits_BV)
        self.batches += 1

    def _hidden(self, inputs: Inputs, first: int, added: list[int]) -> Float[Tensor, "B R D"]:
        assert self.cache is not None
        return self.lm.hidden_at(inputs, cached=self.cache.next(first, added))

    def _advance(self, jobs: Sequence[TextJob], logits_BV: Float[Tensor, "B V"]) -> None:
        """Choose each row's next piece, hand its text on, and remove the rows that ended."""
        try:
            chosen = self._chosen(jobs, logits_BV)
        except Exception as error:
            if is_fatal(error):
                raise
            chosen = [self._chosen_alone(job, logits_BV[row : row + 1]) for row, job in enumerate(jobs)]
        for row, (job, id) in enumerate(zip(jobs, chosen, strict=True)):
            if id is None:
                continue
            try:
                self._one(job, id, logits_BV[row])
            except Exception as error:
                if is_fatal(error):
                    raise
                fail(job.result, error)
        self._let_go()

    def _chosen_alone(self, job: TextJob, logits_1V: Float[Tensor, "1 V"]) -> int | None:
        try:
            return self._chosen([job], logits_1V)[0]
        except Exception as error:
            if is_fatal(error):
                raise
            fail(job.result, error)
            return None

    def _chosen(self, jobs: Sequence[TextJob], logits_BV: Float[Tensor, "B V"]) -> list[int | None]:
        """Return each row's next token; None for a row that the model has no numbers for, which gets a ModelError."""
        finite_B = logits_BV.sum(-1).isfinite()  # a NaN or an infinity stays one in the sum
        choosers = [job.chooser for job in jobs if job.chooser is not None]
        chosen = choose(torch.where(finite_B[:, None], logits_BV, 0), choosers).tolist()
        for job, finite in zip(jobs, finite_B.tolist(), strict=True):
            if not finite:
                fail(job.result, ModelError("The model gave logits that are not numbers; use another --dtype."))
        return [int(id) if finite else None for id, finite in zip(chosen, finite_B.tolist(), strict=True)]

    def _one(self, job: TextJob, id: int, logits_V: Float[Tensor, "V"]) -> None:
        assert job.writer is not None and job.row is not None
        if not job.sampling.max_tokens:
            if job.on_delta is not None and not job.result.done():
                job.on_delta(Delta("", finish="length"))
            settle(job.result, Generated("", (), "length", columns(job.entry, job.row), job.row.cut, job.prompt))
            return
        self.pieces += 1
        finish: Finish | None = None
        ready = ""
        added: tuple[Piece, ...] = ()
        if id in self.lm.stops:
            finish, ready = "stop", job.writer.end()
        else:
            job.last = id
            text, ready, stopped = job.writer.add(id)
            piece = self._piece(text, id, logits_V, job.sampling)
            job.pieces.append(piece)
            added = (piece,)
            if stopped:
                finish = "stop"
            elif len(job.pieces) >= job.sampling.max_tokens:
                finish, ready = "length", ready + job.writer.end()
        if job.on_delta is not None and (ready or finish or added) and not job.result.done():
            job.on_delta(Delta(ready, added, finish))
        if finish:
            read = columns(job.entry, job.row)
            whole = Generated(job.writer.text, tuple(job.pieces), finish, read, job.row.cut, job.prompt)
            settle(job.result, whole)

    def _piece(self, text: str, id: int, logits_V: Float[Tensor, "V"], sampling: Sampling) -> Piece:
        if sampling.logprobs is None:
            return Piece(text, float("nan"))
        logprob_V = logits_V.log_softmax(-1)
        top = logprob_V.topk(min(sampling.logprobs, len(logprob_V)))
        words = [self.lm.tokenizer.decode([i]) for i in top.indices.tolist()]
        return Piece(text, float(logprob_V[id]), tuple(zip(words, top.values.tolist(), strict=True)))

    def _let_go(self) -> None:
        """Give the places of texts that have ended, were cancelled or failed to others."""
        try:
            for index in reversed(range(len(self.under_way))):
                if self.under_way[index].result.done():
                    self._leave(index)
        except Exception as error:
            self._start_over(error)

    def _start_over(self, error: Exception) -> None:
        """End all texts under way, whose states are not known any more, and begin with an empty cache.

        Raises: the error, if `is_fatal` is true of it.
        """
        for job in self.under_way:
            fail(job.result, error)
        if is_fatal(error):
            raise error
        self.under_way.clear()
        self.cache = self.lm.cache(self.places)

    def _leave(self, index: int) -> None:
        """Take a row out of the batch; the last one takes its place, here and in the cache."""
        assert self.cache is not None
        self.cache.drop(index)
        self.under_way[index] = self.under_way[-1]
        self.under_way.pop()
