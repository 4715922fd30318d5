"""POST /v1/completions and /v1/chat/completions, whole or as a stream of events, in OpenAI's form."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from foreword.serving.app.failures import Refused, answer
from foreword.serving.app.schemas import ChatRequest, CompletionRequest, Failure, Generating
from foreword.serving.app.server import Server, server_of, told
from foreword.serving.app.waiting import outcome
from foreword.serving.work import Asked, Delta, Generated, Piece, Sampling, Ticket

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure} for status in (400, 401, 403, 404, 408, 413, 429, 500, 503, 504)
}
CHAT_TOKENS = 256
router = APIRouter(responses=FAILURES)


@dataclass(frozen=True)
class Wanted:
    """The rows of one request with what each is sampled by, and how an answer to them is written."""

    model: str
    rows: list[Asked]
    samplings: list[Sampling]
    echo: list[str]
    chat: bool
    stream: bool
    usage: bool


@router.post("/v1/completions", response_model=None, response_class=JSONResponse)
async def completions(given: CompletionRequest, request: Request) -> Response:
    """Continue one or more texts, with the learnt prompt that `model` names, or with the model alone."""
    server = server_of(request)
    key = server.caller(request)
    version = server.version(key, given.model)
    if given.fields is not None:
        if given.prompt is not None:
            raise Refused(400, "Give `prompt` or `fields`, not both.", "invalid", "fields")
        texts: list[str] = []
        rows = [Asked(version, fields=given.fields, where="fields")]
        _check_text(server, given.fields.values())
    else:
        if given.prompt is None:
            raise Refused(400, "Give a `prompt`, or `fields` for a template with several.", "invalid", "prompt")
        texts = [given.prompt] if isinstance(given.prompt, str) else given.prompt
        _check_text(server, texts)
        rows = [
            Asked(version, text, where=f"prompt {n}" if len(texts) > 1 else "prompt") for n, text in enumerate(texts)
        ]
    if not rows:
        raise Refused(400, "`prompt` is an empty list; give at least one text.", "invalid", "prompt")
    if given.echo and not texts:
        raise Refused(400, "`echo` repeats a `prompt`; with `fields` there is none.", "invalid", "echo")
    tokens = given.max_tokens or 16
    name = given.model if version is None else version.id
    return await _answered(
        request, _wanted(server, given, name, rows, tokens, given.logprobs, texts * given.echo, False)
    )


@router.post("/v1/chat/completions", response_model=None, response_class=JSONResponse)
async def chat(given: ChatRequest, request: Request) -> Response:
    """Answer a conversation; see `messages` for what a learnt prompt reads of it."""
    server = server_of(request)
    key = server.caller(request)
    version = server.version(key, given.model)
    _check_text(server, [message.text for message in given.messages])
    turns = tuple((message.role, message.text) for message in given.messages)
    tokens = given.max_completion_tokens or given.max_tokens or CHAT_TOKENS
    likeliest = (given.top_logprobs or 0) if given.logprobs else None
    rows = [Asked(version, messages=turns, where="messages")]
    name = given.model if version is None else version.id
    return await _answered(request, _wanted(server, given, name, rows, tokens, likeliest, [], True))


def _check_text(server: Server, texts: Any) -> None:
    size = sum(map(len, texts))
    if size > server.limits.text:
        words = f"{size:,} characters were given and {server.limits.text:,} are allowed; send less text."
        raise Refused(413, words, "too_large")


def _wanted(
    server: Server, given: Generating, model: str, rows: list[Asked], tokens: int, logprobs: int | None,
    echo: list[str], chat: bool,
) -> Wanted:  # fmt: skip
    if tokens > server.limits.tokens:
        words = f"{tokens} new pieces were asked for and {server.limits.tokens} are allowed; ask for fewer."
        raise Refused(400, words, "invalid", "max_tokens")
    if len(rows) * given.n > server.limits.rows:
        words = f"{len(rows) * given.n} texts were asked for and {server.limits.rows} are allowed; ask for fewer."
        raise Refused(400, words, "invalid", "n")
    stop = (given.stop,) if isinstance(given.stop, str) else tuple(given.stop or ())
    if len(stop) > 16 or not all(stop):
        raise Refused(400, "`stop` has at most 16 texts, none of them empty.", "invalid", "stop")
    samplings = [
        Sampling(
            max_tokens=tokens, temperature=given.temperature, top_p=given.top_p, top_k=given.top_k,
            seed=None if given.seed is None else given.seed + number, stop=stop, logprobs=logprobs,
        )
        for number in range(given.n)
    ]  # fmt: skip
    usage = given.stream_options is not None and given.stream_options.include_usage
    if given.stream_options is not None and not given.stream:
        raise Refused(400, "`stream_options` are for streams; set `stream`.", "invalid", "stream_options")
    return Wanted(model, rows, samplings, echo, chat, given.stream, usage)


async def _answered(request: Request, wanted: Wanted) -> Response:
    server = server_of(request)
    told(request).update(prompt=wanted.model, rows=len(wanted.rows) * len(wanted.samplings))
    written = Writing(server, wanted, asyncio.get_running_loop())
    try:
        if wanted.stream:
            first = await written.first()
            return StreamingResponse(
                written.events(first, lambda: _note(request, written)), media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )  # fmt: skip
        found = await asyncio.gather(*(outcome(t.result, server.limits.seconds) for t in written.tickets))
    except BaseException:
        written.cancel()
        raise
    written.done = dict(enumerate(found))
    _note(request, written)
    return JSONResponse(written.whole())


def _note(request: Request, written: "Writing") -> None:
    told(request)["tokens"] = written.usage()["total_tokens"]


class Writing:
    """The texts of one request under way: choice `row * n + sample` is sample `sample` of row `row`."""

    def __init__(self, server: Server, wanted: Wanted, loop: asyncio.AbstractEventLoop):
        self.server, self.wanted = server, wanted
        self.id = f"{'chatcmpl' if wanted.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created, self.began = int(time.time()), time.perf_counter()
        self.done: dict[int, Generated] = {}
        self.queue: asyncio.Queue[tuple[int, Delta | BaseException]] = asyncio.Queue()
        self.tickets: list[Ticket] = []
        try:
            for row in wanted.rows:
                for sampling in wanted.samplings:
                    listener = self._listener(len(self.tickets), loop) if wanted.stream else None
                    self.tickets.append(server.engine.generate(row, sampling, listener))
        except BaseException:
            self.cancel()
            raise
        if wanted.stream:
            for number, ticket in enumerate(self.tickets):
                ticket.result.add_done_callback(self._ended(number, loop))

    def cancel(self) -> None:
        for ticket in self.tickets:
            ticket.cancel()

    def _listener(self, number: int, loop: asyncio.AbstractEventLoop) -> Callable[[Delta], None]:
        return lambda delta: _put(loop, self.queue, (number, delta))

    def _ended(self, number: int, loop: asyncio.AbstractEventLoop) -> Callable[[Any], None]:
        def tell(future: Any) -> None:
            if future.cancelled():
                return
            error = future.exception()
            if error is not None:
                _put(loop, self.queue, (number, error))

        return tell

    async def first(self) -> tuple[int, Delta]:
        """The first event of a stream: a failure before it still has a status of its own."""
        async with asyncio.timeout(self.server.limits.seconds):
            number, event = await self.queue.get()
        if isinstance(event, BaseException):
            raise event
        self.server.metrics.first.observe(time.perf_counter() - self.began)
        return number, event

    async def events(self, first: tuple[int, Delta], note: Callable[[], None]) -> AsyncIterator[bytes]:
        """Server-sent events; whoever goes away in between gives the places to others."""
        ended, pieces = 0, 0
        offsets = [0] * len(self.tickets)
        try:
            for number in range(len(self.tickets)):
                row = number // len(self.wanted.samplings)
                if self.wanted.chat:
                    yield self._event(number, {"delta": {"role": "assistant", "content": ""}}, None)
                elif self.wanted.echo:
                    offsets[number] = len(self.wanted.echo[row])
                    yield self._event(number, {"text": self.wanted.echo[row], "logprobs": None}, None)
            number, event = first
            while True:
                if isinstance(event, BaseException):
                    raise event
                pieces += len(event.pieces)
                if event.text or event.finish or (event.pieces and self._logprobs):
                    yield self._event(number, self._part(event, offsets[number]), event.finish)
                offsets[number] += sum(len(piece.text) for piece in event.pieces)
                ended += event.finish is not None
                if ended == len(self.tickets):
                    break
                left = self.server.limits.seconds - (time.perf_counter() - self.began)
                async with asyncio.timeout(max(0.0, left)):
                    number, event = await self.queue.get()
            for index, ticket in enumerate(self.tickets):
                self.done[index] = await outcome(ticket.result, self.server.limits.seconds)
            if self.wanted.usage:
                yield _data({**self._head(chunk=True), "choices": [], "usage": self.usage()})
            yield b"data: [DONE]\n\n"
        except Exception as error:
            # The status has gone out already, so that the failure is an event, and the stream ends without [DONE].
            failed = answer(error)
            yield b"event: error\ndata: " + bytes(failed.body) + b"\n\n"
        finally:
            self.cancel()
            note()

    @property
    def _logprobs(self) -> bool:
        return self.wanted.samplings[0].logprobs is not None

    def _head(self, chunk: bool = False) -> dict[str, Any]:
        kind = ("chat.completion" + ".chunk" * chunk) if self.wanted.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.wanted.model}

    def _part(self, delta: Delta, offset: int) -> dict[str, Any]:
        if self.wanted.chat:
            logprobs = _chat_logprobs(delta.pieces) if self._logprobs else None
            return {"delta": {"content": delta.text} if delta.text else {}, "logprobs": logprobs}
        return {"text": delta.text, "logprobs": _logprobs(delta.pieces, offset) if self._logprobs else None}

    def _event(self, number: int, part: dict[str, Any], finish: str | None) -> bytes:
        choice = {"index": number, **part, "finish_reason": finish}
        return _data({**self._head(chunk=True), "choices": [choice]})

    def usage(self) -> dict[str, int]:
        """A text with several samples is counted once."""
        first = [self.done[n] for n in range(0, len(self.tickets), len(self.wanted.samplings)) if n in self.done]
        prompt, new = sum(one.prompt_tokens for one in first), sum(len(one.pieces) for one in self.done.values())
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def whole(self) -> dict[str, Any]:
        choices = []
        for number in range(len(self.tickets)):
            one = self.done[number]
            before = self.wanted.echo[number // len(self.wanted.samplings)] if self.wanted.echo else ""
            if self.wanted.chat:
                logprobs: Any = _chat_logprobs(one.pieces) if self._logprobs else None
                part: dict[str, Any] = {"message": {"role": "assistant", "content": one.text, "refusal": None}}
            else:
                logprobs = _logprobs(one.pieces, len(before)) if self._logprobs else None
                part = {"text": before + one.text}
            choices.append({"index": number, **part, "logprobs": logprobs, "finish_reason": one.finish})
        return {**self._head(), "choices": choices, "usage": self.usage()}


def _put(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Any], item: Any) -> None:
    """From the engine's thread; a loop that has ended wants nothing more."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(queue.put_nowait, item)


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _logprobs(pieces: Sequence[Piece], offset: int) -> dict[str, Any]:
    offsets = []
    for piece in pieces:
        offsets.append(offset)
        offset += len(piece.text)
    return {
        "tokens": [piece.text for piece in pieces],
        "token_logprobs": [piece.logprob for piece in pieces],
        "top_logprobs": [dict(piece.likeliest) for piece in pieces],
        "text_offset": offsets,
    }


def _chat_logprobs(pieces: Sequence[Piece]) -> dict[str, Any]:
    def told(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [
        {**told(piece.text, piece.logprob), "top_logprobs": [told(*one) for one in piece.likeliest]} for piece in pieces
    ]
    return {"content": content, "refusal": None}
