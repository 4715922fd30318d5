"""Serve POST /v1/classify: labels of texts with their probabilities."""

import asyncio
import json
from collections.abc import Sequence

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from foreword.serving.app.completions import check_text
from foreword.serving.app.error_responses import Refused
from foreword.serving.app.futures import outcome, unless_gone
from foreword.serving.app.schemas import Classification, ClassifyRequest, guarded
from foreword.serving.app.server import key_of, server_of, told
from foreword.serving.protocol import Judged, RowRequest

router = guarded()


@router.post(
    "/v1/classify", response_model=None, response_class=JSONResponse, responses={200: {"model": Classification}}
)
async def classify(given: ClassifyRequest, request: Request) -> Response:
    """Label one or more rows with the learnt prompt that `model` names."""
    server = server_of(request)
    version = server.version(key_of(request), given.model)
    rows = given.input if isinstance(given.input, list) else [given.input]
    if not rows:
        raise Refused(400, "`input` is an empty list; give at least one row.", "invalid", "input")
    if len(rows) > server.limits.rows:
        words = f"{len(rows)} rows were given and {server.limits.rows} are allowed; send fewer."
        raise Refused(400, words, "invalid", "input")
    options = tuple(given.options or ())
    check_text(server, [text for row in rows for text in ([row] if isinstance(row, str) else row.values())], "input")
    if len(options) > server.limits.rows:
        words = f"{len(options)} options were given and {server.limits.rows} are allowed; give fewer."
        raise Refused(400, words, "invalid", "options")
    check_text(server, options, "options")
    if given.options is not None and (len(options) < 2 or len({*options}) < len(options)):
        raise Refused(400, "`options` are two or more different labels.", "invalid", "options")
    asked = []
    for number, row in enumerate(rows):
        where = f"input {number}" if len(rows) > 1 else "input"
        if isinstance(row, str):
            asked.append(RowRequest(version, row, options=options, where=where))
        else:
            asked.append(RowRequest(version, fields=row, options=options, where=where))
    name = given.model if version is None else version.id
    told(request).update(prompt=name, rows=len(rows))
    future = server.engine.classify(asked, server.client(key_of(request)))
    found = await unless_gone(request.receive, outcome(future, server.limits.seconds))
    told(request)["tokens"] = sum(one.prompt_tokens for one in found)
    return await _answer(name, found)


async def _answer(name: str, judged: Sequence[Judged]) -> Response:
    """Return the answer as JSON, built row by row: other requests are served between rows of many labels."""
    lines = []
    for number, one in enumerate(judged):
        row = {"index": number, "label": one.label, "probabilities": one.probabilities, "cut": one.cut}
        lines.append(json.dumps(row, ensure_ascii=False))
        await asyncio.sleep(0)
    tokens = sum(one.prompt_tokens for one in judged)
    head = json.dumps({"object": "list", "model": name}, ensure_ascii=False)
    usage = json.dumps({"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens})
    text = f'{head[:-1]}, "data": [{", ".join(lines)}], "usage": {usage}}}'
    return Response(text.encode(), media_type="application/json")
