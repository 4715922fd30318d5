"""POST /v1/classify: labels of texts with their probabilities."""

from fastapi import APIRouter, Request

from foreword.serving.app.failures import Refused
from foreword.serving.app.generation import FAILURES
from foreword.serving.app.schemas import Classification, Classified, ClassifyRequest, Usage
from foreword.serving.app.server import server_of, told
from foreword.serving.app.waiting import outcome
from foreword.serving.work import Asked

router = APIRouter(responses=FAILURES)


@router.post("/v1/classify")
async def classify(given: ClassifyRequest, request: Request) -> Classification:
    """Label one or more rows with the learnt prompt that `model` names."""
    server = server_of(request)
    key = server.caller(request)
    version = server.version(key, given.model)
    rows = given.input if isinstance(given.input, list) else [given.input]
    if not rows:
        raise Refused(400, "`input` is an empty list; give at least one row.", "invalid", "input")
    if len(rows) > server.limits.rows:
        words = f"{len(rows)} rows were given and {server.limits.rows} are allowed; send fewer."
        raise Refused(400, words, "invalid", "input")
    size = sum(len(row) if isinstance(row, str) else sum(map(len, row.values())) for row in rows)
    if size > server.limits.text:
        words = f"{size:,} characters were given and {server.limits.text:,} are allowed; send less text."
        raise Refused(413, words, "too_large", "input")
    options = tuple(given.options or ())
    if given.options is not None and (len(options) < 2 or len({*options}) < len(options)):
        raise Refused(400, "`options` are two or more different labels.", "invalid", "options")
    asked = []
    for number, row in enumerate(rows):
        where = f"input {number}" if len(rows) > 1 else "input"
        if isinstance(row, str):
            asked.append(Asked(version, row, options=options, where=where))
        else:
            asked.append(Asked(version, fields=row, options=options, where=where))
    name = given.model if version is None else version.id
    told(request).update(prompt=name, rows=len(rows))
    found = await outcome(server.engine.classify(asked), server.limits.seconds)
    tokens = sum(one.prompt_tokens for one in found)
    told(request)["tokens"] = tokens
    return Classification(
        model=name,
        data=[
            Classified(index=n, label=one.label, probabilities=one.probabilities, cut=one.cut)
            for n, one in enumerate(found)
        ],
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )
