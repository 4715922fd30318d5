"""Follow the texts of one request while they are made, and write the answers that hold them, in OpenAI's form."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.serving.app.error_responses import answer
from foreword.serving.app.futures import outcome
from foreword.serving.app.server import Server
from foreword.serving.app.streaming import LAST, data
from foreword.serving.protocol import ANYBODY, Client, Delta, Generated, Piece, RowRequest, Sampling, Ticket


@dataclass(frozen=True)
class TextRequest:
    """Hold the rows of one request, the samplings of each row, and how the answer is written.

    `echo` has each row's text if answers begin with it, and is empty otherwise.
    """

    model: str
    rows: list[RowRequest]
    samplings: list[Sampling]
    echo: list[str]
    chat: bool
    stream: bool
    usage: bool


class TextStreams:
    """Hold the texts under way: choice `row * n + sample` is sample `sample` of row `row`. Cancel it when nobody waits
    any more.

    Raises: Busy, and then none of its texts is under way.
    """

    def __init__(self, server: Server, wanted: TextRequest, loop: asyncio.AbstractEventLoop, by: Client = ANYBODY):
        self.server, self.wanted = server, wanted
        self.id = f"{'chatcmpl' if wanted.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created, self.began = int(time.time()), time.perf_counter()
        self.new = 0  # pieces that were streamed
        self.done: dict[int, Generated] = {}
        self.queue: asyncio.Queue[tuple[int, Delta | BaseException]] = asyncio.Queue()
        self.tickets: list[Ticket] = []
        try:
            for row in wanted.rows:
                for sampling in wanted.samplings:
                    listener = self._listener(len(self.tickets), loop) if wanted.stream else None
                    self.tickets.append(server.engine.generate(row, sampling, listener, by))
        except BaseException:
            self.cancel()
            raise
        if wanted.stream:
            for number, ticket in enumerate(self.tickets):
                ticket.result.add_done_callback(self._ended(number, loop))

    def cancel(self) -> None:
        """Cancel the texts that have not ended, which gives their places to others."""
        for ticket in self.tickets:
            ticket.cancel()

    @property
    def tokens(self) -> int:
        """Return the number of pieces read and generated, as far as they are known."""
        return self.usage()["total_tokens"] if self.done else self.new

    async def whole(self) -> bytes:
        """Return the answer as JSON, once all texts have ended; other requests are served between its texts.

        Raises: TimeoutError, and the errors of the engine.
        """
        found = await asyncio.gather(*(outcome(one.result, self.server.limits.seconds) for one in self.tickets))
        self.done = dict(enumerate(found))
        choices = []
        for number, one in self.done.items():
            before = self._echo(number)
            if self.wanted.chat:
                logprobs: Any = _chat_logprobs(one.pieces) if self._logprobs else None
                part: dict[str, Any] = {"message": {"role": "assistant", "content": one.text, "refusal": None}}
            else:
                offset = 0 if one.prompt else len(before)
                logprobs = _logprobs((*one.prompt, *one.pieces), offset) if self._logprobs else None
                part = {"text": before + one.text}
            choice = {"index": number, **part, "logprobs": logprobs, "finish_reason": one.finish}
            choices.append(json.dumps(choice, ensure_ascii=False, allow_nan=False))
            await asyncio.sleep(0)
        head, usage = json.dumps(self._head(), ensure_ascii=False), json.dumps(self.usage())
        return f'{head[:-1]}, "choices": [{", ".join(choices)}], "usage": {usage}}}'.encode()

    async def first(self) -> tuple[int, Delta]:
        """Return the first event of a stream; an error raised before it can still set the status of the answer."""
        found = await self._next()
        self.server.metrics.first.observe(time.perf_counter() - self.began)
        return found

    async def events(self, first: tuple[int, Delta]) -> AsyncGenerator[bytes]:
        """Yield server-sent events from the first on. A failure is the last one, without [DONE] after it."""
        ended = 0
        offsets = [len(self._echo(number)) for number in range(len(self.tickets))]
        try:
            for number in range(len(self.tickets)):
                if self.wanted.chat:
                    yield self._event(number, {"delta": {"role": "assistant", "content": ""}}, None)
                elif self.wanted.echo and not self._logprobs:  # else it comes with the pieces of the text
                    yield self._event(number, {"text": self._echo(number), "logprobs": None}, None)
            number, delta = first
            while True:
                self.new += len(delta.pieces)
                if delta.prompt:
                    part = {"text": self._echo(number), "logprobs": _logprobs(delta.prompt, 0)}
                    yield self._event(number, part, None)
                if delta.text or delta.finish or (delta.pieces and self._logprobs):
                    yield self._event(number, self._part(delta, offsets[number]), delta.finish)
                offsets[number] += sum(len(piece.text) for piece in delta.pieces)
                ended += delta.finish is not None
                if ended == len(self.tickets):
                    break
                number, delta = await self._next()
            for index, ticket in enumerate(self.tickets):
                self.done[index] = await outcome(ticket.result, self.server.limits.seconds)
            if self.wanted.usage:
                yield data({**self._head(chunk=True), "choices": [], "usage": self.usage()})
            yield LAST
        except Exception as error:
            # The status has gone out already.
            yield data(json.loads(bytes(answer(error).body)), "error")
        finally:
            self.cancel()

    async def _next(self) -> tuple[int, Delta]:
        left = self.server.limits.seconds - (time.perf_counter() - self.began)
        async with asyncio.timeout(max(0.0, left)):
            number, event = await self.queue.get()
        if isinstance(event, BaseException):
            raise event
        return number, event

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

    @property
    def _logprobs(self) -> bool:
        return self.wanted.samplings[0].logprobs is not None

    def _echo(self, number: int) -> str:
        return self.wanted.echo[number // len(self.wanted.samplings)] if self.wanted.echo else ""

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
        return data({**self._head(chunk=True), "choices": [choice]})

    def usage(self) -> dict[str, int]:
        """Return the counts of tokens in OpenAI's form; the prompt of a text with several samples is counted once."""
        first = [one for number, one in self.done.items() if number % len(self.wanted.samplings) == 0]
        prompt, new = sum(one.prompt_tokens for one in first), sum(len(one.pieces) for one in self.done.values())
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _put(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Any], item: Any) -> None:
    """Put an item into the event loop's queue from the engine's thread; drop it if the loop has ended."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(queue.put_nowait, item)


def _logprobs(pieces: Sequence[Piece], offset: int) -> dict[str, Any]:
    offsets = []
    for piece in pieces:
        offsets.append(offset)
        offset += len(piece.text)
    return {
        "tokens": [piece.text for piece in pieces],
        "token_logprobs": [piece.logprob for piece in pieces],
        # Several pieces may be the same text; the likeliest of them counts.
        "top_logprobs": [None if p.logprob is None else dict(reversed(p.likeliest)) for p in pieces],
        "text_offset": offsets,
    }


def _chat_logprobs(pieces: Sequence[Piece]) -> dict[str, Any]:
    def told(text: str, logprob: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [
        {**told(piece.text, piece.logprob), "top_logprobs": [told(*one) for one in piece.likeliest]} for piece in pieces
    ]
    return {"content": content, "refusal": None}
