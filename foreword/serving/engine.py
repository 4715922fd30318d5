"""The engine: one thread that owns the model, labels rows in mixed batches and continues texts in a batch that changes.

Whoever asks may do so from any thread. A second thread reads prompts and tokenises, so that the model never waits for a
disk. Every row names its own prompt; rows that end give their place to those that wait at the next step.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.learnt import text_start
from foreword.core.prompts import Bank, HardPrompt, PrefixPrompt, stack
from foreword.core.shapes import Float, Tensor
from foreword.core.template import Template
from foreword.errors import ConfigError, DataError, ForewordError, ModelError
from foreword.models.base import FrozenLM, Inputs
from foreword.models.batch import collate, prepare
from foreword.models.encode import Encoded, Encoder
from foreword.models.score import score
from foreword.serving.bank import Entry, PromptBank
from foreword.serving.decode import Chooser, Writer, choose
from foreword.serving.store import Version
from foreword.serving.work import Asked, Busy, Delta, Finish, Generated, Judged, Load, Piece, Sampling
from foreword.tasks.given import row_of
from foreword.tasks.rows import Row

PLAIN = "{text}{answer}"  # how the model alone is given a text
STOPPED = "The server stopped before this was finished; ask again in a moment."


@final
@dataclass(frozen=True)
class Room:
    """How much an engine holds. Sizes in bytes: prompts in memory, compiled prompts, and what generation keeps.

    `rows` texts are generated at once; `waiting` rows may wait before more are refused.
    """

    memory: int = 2**30
    compiled: int = 2**30
    cache: int = 2**31
    rows: int = 32
    waiting: int = 4096


@final
@dataclass(eq=False)
class Judging:
    """Rows of one request to be labelled; the answer is whole or an error."""

    result: Future[list[Judged]]
    found: list[Judged | None]
    left: int


@final
@dataclass(frozen=True, eq=False)
class Labelling:
    """One row to be labelled, for the `index`-th place of its request."""

    of: Judging
    index: int
    entry: Entry
    row: Encoded
    names: tuple[str, ...]


@final
@dataclass(eq=False)
class Writing:
    """One text on its way, and its ticket: cancelling the result gives its place to the next."""

    result: Future[Generated]
    sampling: Sampling
    on_delta: Callable[[Delta], None] | None
    entry: Entry | None = None
    row: Encoded | None = None
    chooser: Chooser | None = None
    writer: Writer | None = None
    last: int = -1
    pieces: list[Piece] = field(default_factory=list)

    def cancel(self) -> None:
        self.result.cancel()


@final
class Engine:
    """`Works` over one frozen model. Close it, or use it in a `with`.

    Raises: ModelError where the room for generation holds no row.
    """

    def __init__(
        self,
        lm: FrozenLM,
        room: Room | None = None,
        *,
        allow_other_weights: bool = False,
        warn: Callable[[str], None] = lambda line: None,
    ):
        room = room or Room()
        self.lm, self.room = lm, room
        self.bank = PromptBank(lm, room.memory, room.compiled, allow_other_weights, warn=warn)
        self._cache = lm.cache(room.rows) if lm.kind == "causal" and lm.takes_prefix else None
        self._columns = self._widest()
        self._jobs: queue.SimpleQueue[Labelling | Writing | None] = queue.SimpleQueue()
        self._labelling: deque[Labelling] = deque()
        self._starting: deque[Writing] = deque()
        self._writing: list[Writing] = []
        self._lock = threading.Lock()
        self._accepted = 0
        self._open, self._dropping = True, False
        self._ended = threading.Event()
        self._batches = self._labelled = self._written = 0
        self._rate = 0.0  # rows finished a second, of late
        self._front = ThreadPoolExecutor(1, thread_name_prefix="foreword-front")
        self._thread = threading.Thread(target=self._run, name="foreword-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def model(self) -> str:
        return self.lm.name

    def _widest(self) -> int:
        """The longest row that generation has room for: a power of two of columns, or the whole context."""
        dims = self.lm.dims
        column = 2 * dims.layers * dims.heads * dims.head_size * torch.finfo(self.lm.dtype).bits // 8
        fits = self.room.cache // (self.room.rows * column)
        if self._cache is None or 1 << (dims.context - 1).bit_length() <= fits:
            return dims.context
        if fits < 64:
            raise ModelError(
                f"Generation of {self.room.rows} rows at once with a cache of {self.room.cache:,} bytes leaves "
                f"{fits} positions a row; give it a larger cache, or fewer rows."
            )
        return 1 << (fits.bit_length() - 1)

    # What a front calls, from any thread.

    def classify(self, rows: Sequence[Asked]) -> Future[list[Judged]]:
        result: Future[list[Judged]] = Future()
        if not rows:
            result.set_result([])
            return result
        self._accept(len(rows), result)
        self._front.submit(self._read_labelling, tuple(rows), result)
        return result

    def generate(self, row: Asked, sampling: Sampling, on_delta: Callable[[Delta], None] | None = None) -> Writing:
        writing = Writing(Future(), sampling, on_delta)
        self._accept(1, writing.result)
        self._front.submit(self._read_writing, row, writing)
        return writing

    def check(self, artefact: Artefact) -> None:
        self.bank.check(artefact)

    def load(self) -> Load:
        accepted, generating = self._accepted, len(self._writing)
        return Load(
            waiting=max(0, accepted - generating),
            generating=generating,
            batches=self._batches,
            rows_classified=self._labelled,
            pieces_generated=self._written,
            **self.bank.counts(),
        )

    def close(self, finish: bool = True, seconds: float = 30.0) -> None:
        with self._lock:
            first, self._open = self._open, False
        if not first:
            self._ended.wait(seconds)
            return
        until = time.monotonic() + seconds
        while finish and self._accepted and time.monotonic() < until:
            time.sleep(0.01)
        self._dropping = True
        self._front.shutdown()
        self._jobs.put(None)
        self._ended.wait(max(1.0, until - time.monotonic()))

    def _accept(self, rows: int, result: Future[Any]) -> None:
        with self._lock:
            if not self._open:
                raise Busy("The server is stopping and takes nothing more; ask again in a moment.", 5.0)
            if self._accepted + rows > self.room.waiting:
                wait = min(60.0, max(1.0, self._accepted / self._rate if self._rate else 1.0))
                raise Busy(
                    f"{self._accepted} rows are waiting and {rows} more are too many at present; ask again in "
                    f"{wait:.0f} s.",
                    wait,
                )
            self._accepted += rows

        def ended(_: Future[Any]) -> None:
            with self._lock:
                self._accepted -= rows

        result.add_done_callback(ended)

    # What the front thread does: prompts from disk, rows to pieces.

    def _read_labelling(self, asked: Sequence[Asked], result: Future[list[Judged]]) -> None:
        try:
            self._go_on()
            whole = Judging(result, [None] * len(asked), len(asked))
            jobs: list[Labelling | None] = [None] * len(asked)
            own: dict[Version, list[int]] = {}
            for index, one in enumerate(asked):
                if one.version is None:
                    raise ConfigError(
                        f"{self.model} alone has no labels; name a prompt that was made for classification."
                    )
                own.setdefault(one.version, []).append(index)
            for version, indices in own.items():
                entry = self.bank.entry(version)
                if not entry.artefact.format.labels and not all(asked[i].options for i in indices):
                    raise ConfigError(f"{version.name} has no labels of its own; give each row its options.")
                rows = [_row(entry, asked[i], labelled=True) for i in indices]
                for index, row, encoded in zip(indices, rows, entry.labels.encode_rows(rows), strict=True):
                    names = row.options or entry.artefact.format.labels
                    jobs[index] = Labelling(whole, index, entry, entry.led(encoded), names)
        except Exception as error:
            _fail(result, error)
            return
        for job in jobs:
            assert job is not None, "every row has a version"
            self._jobs.put(job)

    def _read_writing(self, asked: Asked, writing: Writing) -> None:
        try:
            self._go_on()
            self._check_sampling(writing.sampling)
            entry, encoder, row = self._to_continue(asked)
            ahead = 0 if entry is None else text_start(entry.value)
            room = min(encoder.room, self._columns - ahead) - writing.sampling.max_tokens
            if encoder.own > room:
                raise ConfigError(
                    f"max_tokens {writing.sampling.max_tokens} leaves no room for the text: a row may have "
                    f"{min(self._columns, self.lm.dims.context)} positions, of which the prompt and its template take "
                    f"{ahead + encoder.own}; ask for fewer."
                )
            [encoded] = replace(encoder, room=room).encode_rows([row])
            tail = [int(i) for i, slot in zip(encoded.ids_S, encoded.slot_S, strict=True) if slot < 0]
            writing.entry, writing.row = entry, encoded if entry is None else entry.led(encoded)
            writing.chooser = Chooser.of(writing.sampling)
            writing.writer = Writer(self.lm.tokenizer, tail, writing.sampling.stop)
        except Exception as error:
            _fail(writing.result, error)
            return
        self._jobs.put(writing)

    def _go_on(self) -> None:
        if self._dropping:
            raise Busy(STOPPED, 5.0)

    def _check_sampling(self, sampling: Sampling) -> None:
        if self.lm.kind != "causal":
            raise ConfigError(f"{self.model} is a masked model, which labels texts and cannot continue them.")
        self.lm.require_prefix()
        for name, value, right in (
            ("max_tokens", sampling.max_tokens, sampling.max_tokens >= 1),
            ("temperature", sampling.temperature, 0 <= sampling.temperature <= 100),
            ("top_p", sampling.top_p, 0 < sampling.top_p <= 1),
            ("top_k", sampling.top_k, sampling.top_k >= 0),
            ("stop", sampling.stop, all(sampling.stop)),
        ):
            if not right:
                raise ConfigError(f"{name} may not be {value!r}.")

    def _to_continue(self, asked: Asked) -> tuple[Entry | None, Encoder, Row]:
        """The prompt, how a row is put to the model, and the row."""
        if asked.version is not None:
            entry = self.bank.entry(asked.version)
            return entry, entry.plain, _row(entry, asked, labelled=False)
        if asked.messages:
            if not self.lm.tokenizer.chat_template:
                raise ConfigError(f"{self.model} has no chat template; use completions, or a prompt by its name.")
            turns = [{"role": role, "content": f"{{text{n}}}"} for n, (role, _) in enumerate(asked.messages)]
            fields = {f"text{n}": content for n, (_, content) in enumerate(asked.messages)}
            form = Format(Template.parse(turns), truncate="error")
        elif asked.text is not None:
            fields, form = {"text": asked.text}, Format(Template.parse(PLAIN), truncate="error")
        else:
            raise DataError(
                f"{asked.where}: {self.model} alone reads a text or messages, not fields; give one of them."
            )
        return None, self.bank.encoder(form, 0), Row(fields, None, (), asked.where)

    # What the engine's thread does.

    @torch.no_grad()
    def _run(self) -> None:
        try:
            while self._take():
                self._label_some()
                self._start_some()
                self._write_on()
        finally:
            self._stop()

    def _take(self) -> bool:
        """New work to where it waits; sleeps where there is none. False when the engine is to end."""
        idle = not (self._labelling or self._starting or self._writing)
        while True:
            try:
                job = self._jobs.get(block=idle)
            except queue.Empty:
                return True
            if job is None:
                return False
            idle = False
            if isinstance(job, Labelling):
                self._labelling.append(job)
            else:
                self._starting.append(job)

    def _stop(self) -> None:
        """Nothing that was accepted is lost silently: what has not ended is told so."""
        with self._lock:
            self._open = False
        rest: list[Future[Any]] = [w.result for w in (*self._writing, *self._starting)]
        rest += [job.of.result for job in self._labelling]
        with suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    rest.append(job.result if isinstance(job, Writing) else job.of.result)
        for result in rest:
            _fail(result, Busy(STOPPED, 5.0))
        self._ended.set()

    def _label_some(self) -> None:
        """One pass over the rows that waited longest, of as many prompts as they have."""
        taken: list[Labelling] = []
        tokens = 0
        while self._labelling:
            job = self._labelling[0]
            if job.of.result.done():  # cancelled, or another of its rows failed
                self._labelling.popleft()
                continue
            if taken and tokens + job.row.cost > self.lm.batch_tokens:
                break
            tokens += job.row.cost
            taken.append(self._labelling.popleft())
        if taken:
            self._attempt(self._label, taken, [job.of.result for job in taken])

    def _attempt(self, work: Callable[[Any], None], jobs: list[Any], results: list[Future[Any]]) -> None:
        """Do the work of all; where that fails, of each alone, so that only the one at fault is told."""
        try:
            work(jobs)
        except Exception as error:
            if len(jobs) == 1:
                _fail(results[0], error)
                return
            for job, result in zip(jobs, results, strict=True):
                if not result.done():
                    self._attempt(work, [job], [result])

    def _label(self, jobs: Sequence[Labelling]) -> None:
        began = time.monotonic()
        bank, task_of, led = self._bank([(job.entry, job.row) for job in jobs])
        rows = [job.row.without_lead() if alone else job.row for job, alone in zip(jobs, led, strict=True)]
        score_BC = score(self.lm, rows, bank, torch.tensor(task_of)).double().cpu()
        judged: list[Judged] = []
        for job, score_C in zip(jobs, score_BC, strict=True):
            probability_C = score_C[: len(job.names)].softmax(-1)
            if not bool(torch.isfinite(probability_C).all()):
                raise ModelError(f"{job.entry.version.name} gave scores that are not numbers; use another --dtype.")
            found = dict(zip(job.names, probability_C.tolist(), strict=True))
            label = max(found, key=found.__getitem__)
            judged.append(Judged(label, found, _columns(job.entry, job.row), job.row.cut))
        for job, one in zip(jobs, judged, strict=True):
            job.of.found[job.index] = one
            job.of.left -= 1
            if not job.of.left:
                _settle(job.of.result, [done for done in job.of.found if done is not None])
        self._batches += 1
        self._labelled += len(jobs)
        self._note(len(jobs), began)

    def _bank(self, rows: Sequence[tuple[Entry | None, Encoded]]) -> tuple[Bank, list[int], list[bool]]:
        """A bank of the prompts that these rows have, each once; whose is whose; and which rows' leads it holds."""
        number: dict[int, int] = {}
        first: list[tuple[Entry, Encoded]] = []
        task_of, led = [], []
        for entry, row in rows:
            if entry is None:
                task_of.append(-1)
                led.append(False)
                continue
            leads = 0 < row.lead < len(row.ids_S) and entry.lead > 0
            # A row that ends with its lead has nothing to read after it, so it brings its lead along: another prompt.
            key = 2 * id(entry) + leads
            if key not in number:
                number[key] = len(first)
                first.append((entry, row if leads else replace(row, lead=0)))
            task_of.append(number[key])
            led.append(leads)
        nothing = HardPrompt(torch.zeros(0, dtype=torch.long))
        prefixes = self.bank.prefixes(first)
        values = [nothing if isinstance(entry.value, PrefixPrompt) else entry.value for entry, _ in first]
        if -1 in task_of:  # the model alone
            prefixes, values = [*prefixes, None], [*values, nothing]
        bank = stack([nothing if p is None else p for p in prefixes], self.lm.embed, self.lm.device)
        rest = [row.slot_S[row.lead :] if leads else row.slot_S for (_, row), leads in zip(rows, led, strict=True)]
        if any(bool((slot_S >= 0).any()) for slot_S in rest):
            bank = replace(bank, soft_TPD=stack(values, self.lm.embed, self.lm.device).soft_TPD)
        return bank, [len(first) if t < 0 else t for t in task_of], led

    def _start_some(self) -> None:
        """Prefill as many waiting texts as there are places, one pass at a time."""
        taken: list[Writing] = []
        tokens = 0
        while self._starting and len(self._writing) + len(taken) < self.room.rows:
            job = self._starting[0]
            assert job.row is not None, "rows are read before they wait"
            if job.result.done():
                self._starting.popleft()
                continue
            if taken and tokens + len(job.row.ids_S) > self.lm.batch_tokens:
                break
            tokens += len(job.row.ids_S)
            taken.append(self._starting.popleft())
        if taken:
            self._attempt(self._prefill, taken, [job.result for job in taken])

    def _prefill(self, jobs: Sequence[Writing]) -> None:
        assert self._cache is not None, "masked models do not come here"
        began, first = time.monotonic(), len(self._cache)
        try:
            pairs = [(job.entry, job.row) for job in jobs if job.row is not None]
            bank, task_of, led = self._bank(pairs)
            rows = []
            for (_, row), task, alone in zip(pairs, task_of, led, strict=True):
                self._cache.add(_prefix_of(bank, task))
                rows.append(row.without_lead() if alone else row)
            soft = replace(bank, keys_TNQHK=None, values_TNQHK=None)  # the cache has the prefixes
            inputs, _ = prepare(self.lm, collate(rows), soft, torch.tensor(task_of))
            logits_BV = self._read(inputs, first, [len(row.ids_S) for row in rows])
        except BaseException:
            while len(self._cache) > first:
                self._cache.drop(len(self._cache) - 1)
            raise
        self._writing += jobs
        self._advance(jobs, logits_BV)
        self._batches += 1
        self._note(0, began)

    def _write_on(self) -> None:
        """One more piece of every text that is under way."""
        assert self._cache is not None or not self._writing, "masked models write nothing"
        for index in reversed(range(len(self._writing))):
            if self._writing[index].result.done():  # cancelled
                self._leave(index)
        if not self._writing:
            return
        jobs = list(self._writing)
        try:
            count = len(jobs)
            ids_B1 = torch.tensor([[job.last] for job in jobs], device=self.lm.device)
            zeros_B1 = torch.zeros(count, 1, dtype=torch.long, device=self.lm.device)
            inputs = Inputs(self.lm.embed(ids_B1), torch.ones_like(zeros_B1, dtype=torch.bool), zeros_B1, zeros_B1)
            logits_BV = self._read(inputs, 0, [1] * count)
        except Exception as error:  # their states cannot be told any more
            for job in jobs:
                _fail(job.result, error)
            for index in reversed(range(len(self._writing))):
                self._leave(index)
            return
        self._advance(jobs, logits_BV)
        self._batches += 1

    def _read(self, inputs: Inputs, first: int, added: list[int]) -> Float[Tensor, "B V"]:
        assert self._cache is not None
        hidden_BRD = self.lm.hidden_at(inputs, cached=self._cache.next(first, added))
        return self.lm.vocabulary_logits(hidden_BRD[:, 0])

    def _advance(self, jobs: Sequence[Writing], logits_BV: Float[Tensor, "B V"]) -> None:
        """Choose each row's next piece, hand its text on, and let the rows go that ended."""
        finite_B = logits_BV.isfinite().all(-1)
        choosers = [job.chooser for job in jobs if job.chooser is not None]
        chosen = choose(torch.where(finite_B[:, None], logits_BV, 0), choosers).tolist()
        for row, (job, id, finite) in enumerate(zip(jobs, chosen, finite_B.tolist(), strict=True)):
            if not finite:
                _fail(job.result, ModelError("The model gave logits that are not numbers; use another --dtype."))
                continue
            try:
                self._one(job, int(id), logits_BV[row])
            except Exception as error:
                _fail(job.result, error)
        for index in reversed(range(len(self._writing))):
            if self._writing[index].result.done():
                self._leave(index)

    def _one(self, job: Writing, id: int, logits_V: Float[Tensor, "V"]) -> None:
        assert job.writer is not None and job.row is not None
        self._written += 1
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
            whole = Generated(job.writer.text, tuple(job.pieces), finish, _columns(job.entry, job.row), job.row.cut)
            _settle(job.result, whole)

    def _piece(self, text: str, id: int, logits_V: Float[Tensor, "V"], sampling: Sampling) -> Piece:
        if sampling.logprobs is None:
            return Piece(text, float("nan"))
        logprob_V = logits_V.log_softmax(-1)
        top = logprob_V.topk(min(sampling.logprobs, len(logprob_V)))
        words = [self.lm.tokenizer.decode([i]) for i in top.indices.tolist()]
        return Piece(text, float(logprob_V[id]), tuple(zip(words, top.values.tolist(), strict=True)))

    def _leave(self, index: int) -> None:
        """Take a row out of the batch; the last one takes its place, here and in the cache."""
        assert self._cache is not None
        self._cache.drop(index)
        self._writing[index] = self._writing[-1]
        self._writing.pop()

    def _note(self, rows: int, began: float) -> None:
        took = max(1e-6, time.monotonic() - began)
        if rows:
            self._rate = rows / took if not self._rate else 0.8 * self._rate + 0.2 * rows / took


def _row(entry: Entry, asked: Asked, *, labelled: bool) -> Row:
    """What was asked as a row of the prompt's fields. Raises: DataError, ConfigError that say what is missing."""
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
    if asked.options:
        given["options"] = list(asked.options)
    return row_of(entry.artefact, given, asked.where, labelled=labelled)


def _columns(entry: Entry | None, row: Encoded) -> int:
    """What a row takes of the context, its prompt included."""
    return len(row.ids_S) + (0 if entry is None else text_start(entry.value))


def _prefix_of(bank: Bank, task: int) -> PrefixPrompt | None:
    if bank.keys_TNQHK is None or bank.values_TNQHK is None:
        return None
    length = int(bank.prefix_length_T[task])
    if not length:
        return None
    return PrefixPrompt(
        {"self": (bank.keys_TNQHK[task, :, :length], bank.values_TNQHK[task, :, :length])}, int(bank.start_T[task])
    )


def _settle(result: Future[Any], value: Any) -> None:
    with suppress(Exception):  # cancelled meanwhile
        result.set_result(value)


def _fail(result: Future[Any], error: BaseException) -> None:
    if not isinstance(error, ForewordError):
        error = ModelError(f"The model failed on this row ({type(error).__name__}: {error}).")
    with suppress(Exception):
        result.set_exception(error)
