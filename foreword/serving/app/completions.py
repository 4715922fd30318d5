"""Serve POST /v1/completions and /v1/chat/completions, whole or as a stream of events, in OpenAI's form."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from foreword.serving.app.error_responses import Refused
from foreword.serving.app.futures import unless_gone
from foreword.serving.app.schemas import ChatCompletion, ChatRequest, Completion, CompletionRequest, Generating, guarded
from foreword.serving.app.server import Server, key_of, server_of, told
from foreword.serving.app.streaming import EventStream
from foreword.serving.app.text_responses import TextRequest, TextStreams
from foreword.serving.protocol import RowRequest, Sampling

TOKENS, CHAT_TOKENS = 16, 256
SHOWN = 2**21  # log-probabilities that one answer may have
EVENTS = {  # the schema is that of one event
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "With `stream`: OpenAI's chunks as `data`, `[DONE]` last; or an `error` event, and the end.",
            "properties": {"data": {"type": "string"}, "event": {"enum": ["message", "error"]}},
            "required": ["data"],
        }
    }
}
router = guarded()


@router.post(
    "/v1/completions", response_model=None, response_class=JSONResponse,
    responses={200: {"model": Completion, "content": EVENTS}},
)  # fmt: skip
async def completions(given: CompletionRequest, request: Request) -> Response:
    """Continue one or more texts, with the learnt prompt that `model` names, or with the model alone."""
    server = server_of(request)
    version = server.version(key_of(request), given.model)
    if given.fields is not None:
        if given.prompt is not None:
            raise Refused(400, "Give `prompt` or `fields`, not both.", "invalid", "fields")
        texts: list[str] = []
        rows = [RowRequest(version, fields=given.fields, where="fields")]
        check_text(server, given.fields.values(), "fields")
    else:
        if given.prompt is None:
            raise Refused(400, "Give a `prompt`, or `fields` for a template with several.", "invalid", "prompt")
        texts = [given.prompt] if isinstance(given.prompt, str) else given.prompt
        check_text(server, texts, "prompt")
        rows = [
            RowRequest(version, text, where=f"prompt {n}" if len(texts) > 1 else "prompt", echo=bool(given.echo))
            for n, text in enumerate(texts)
        ]
    if not rows:
        raise Refused(400, "`prompt` is an empty list; give at least one text.", "invalid", "prompt")
    if given.echo and not texts:
        raise Refused(400, "`echo` repeats a `prompt`; with `fields` there is none.", "invalid", "echo")
    tokens = TOKENS if given.max_tokens is None else given.max_tokens
    if not tokens and not given.echo:
        raise Refused(
            400, "`max_tokens` 0 shows the prompt alone; set `echo`, or ask for 1 or more.", "invalid", "max_tokens"
        )
    echo = texts if given.echo else []
    samplings = _samplings(server, given, len(rows), tokens, given.logprobs)
    _check_shown(samplings, len(rows) * tokens + sum(len(text.encode()) for text in echo))
    name = given.model if version is None else version.id
    return await _answered(request, TextRequest(name, rows, samplings, echo, False, bool(given.stream), _usage(given)))


@router.post(
    "/v1/chat/completions", response_model=None, response_class=JSONResponse,
    responses={200: {"model": ChatCompletion, "content": EVENTS}},
)  # fmt: skip
async def chat(given: ChatRequest, request: Request) -> Response:
    """Answer a conversation; see `messages` for what a learnt prompt reads of it."""
    server = server_of(request)
    version = server.version(key_of(request), given.model)
    check_text(server, [message.text for message in given.messages], "messages")
    if given.top_logprobs is not None and not given.logprobs:
        raise Refused(400, "`top_logprobs` are shown beside `logprobs`; set that too.", "invalid", "top_logprobs")
    turns = tuple((message.role, message.text) for message in given.messages)
    rows = [RowRequest(version, messages=turns, where="messages")]
    likeliest = (given.top_logprobs or 0) if given.logprobs else None
    tokens = given.max_completion_tokens or given.max_tokens or CHAT_TOKENS
    samplings = _samplings(server, given, 1, tokens, likeliest)
    _check_shown(samplings, tokens)
    name = given.model if version is None else version.id
    return await _answered(request, TextRequest(name, rows, samplings, [], True, bool(given.stream), _usage(given)))


def check_text(server: Server, texts: Iterable[str], param: str) -> None:
    """Check the length of all texts together. Raises: Refused (413) if it is above the limit of characters."""
    size = sum(map(len, texts))
    if size > server.limits.text:
        words = f"{size:,} characters were given and {server.limits.text:,} are allowed; send less text."
        raise Refused(413, words, "too_large", param)


def _samplings(server: Server, given: Generating, rows: int, tokens: int, logprobs: int | None) -> list[Sampling]:
    """Return how each sample of a row is drawn; null options take the default. Raises: Refused (400) for more tokens or
    texts than are allowed, and for an empty stop text."""
    n = given.n or 1
    if tokens > server.limits.tokens:
        words = f"{tokens} new pieces were asked for and {server.limits.tokens} are allowed; ask for fewer."
        raise Refused(400, words, "invalid", "max_tokens")
    if rows * n > server.limits.rows:
        words = f"{rows * n} texts were asked for and {server.limits.rows} are allowed; ask for fewer."
        raise Refused(400, words, "invalid", "n")
    stop = (given.stop,) if isinstance(given.stop, str) else tuple(given.stop or ())
    if not all(stop):
        raise Refused(400, "`stop` may have no empty text.", "invalid", "stop")
    return [
        Sampling(
            max_tokens=tokens,
            temperature=1.0 if given.temperature is None else given.temperature,
            top_p=1.0 if given.top_p is None else given.top_p,
            top_k=given.top_k or 0,
            seed=None if given.seed is None else given.seed + number,
            stop=stop,
            logprobs=logprobs,
        )
        for number in range(n)
    ]


def _check_shown(samplings: Sequence[Sampling], pieces: int) -> None:
    """Check the number of log-probabilities. Raises: Refused (400) for more than one answer may have.

    `pieces` are those of one sample of each text, at most: a text that is repeated has no more pieces than bytes.
    """
    beside = samplings[0].logprobs
    count = 0 if beside is None else len(samplings) * pieces * (1 + beside)
    if count > SHOWN:
        words = (
            f"Up to {count:,} log-probabilities were asked for, of {len(samplings) * pieces:,} pieces and {beside} "
            f"beside each, and {SHOWN:,} are allowed; ask for fewer of them, or for fewer or shorter texts."
        )
        raise Refused(400, words, "invalid", "logprobs")


def _usage(given: Generating) -> bool:
    if given.stream_options is not None and not given.stream:
        raise Refused(400, "`stream_options` are for streams; set `stream`.", "invalid", "stream_options")
    return given.stream_options is not None and bool(given.stream_options.include_usage)


async def _answered(request: Request, wanted: TextRequest) -> Response:
    server = server_of(request)
    about: dict[str, Any] = told(request)
    about.update(prompt=wanted.model, rows=len(wanted.rows) * len(wanted.samplings))
    writing = TextStreams(server, wanted, asyncio.get_running_loop(), server.client(key_of(request)))
    try:
        if wanted.stream:
            first = await unless_gone(request.receive, writing.first())
            return EventStream(
                writing.events(first), server.limits.seconds, lambda: about.update(tokens=writing.tokens)
            )
        whole = await unless_gone(request.receive, writing.whole())
    except BaseException:
        writing.cancel()
        raise
    about["tokens"] = writing.tokens
    return Response(whole, media_type="application/json")
