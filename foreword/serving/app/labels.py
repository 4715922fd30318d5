"""POST /v1/classify: labels of texts with their probabilities."""

from fastapi import Request

from foreword.serving.app.failures import Refused
from foreword.serving.app.generation import check_text
from foreword.serving.app.routes import guarded
from foreword.serving.app.schemas import Classification, Classified, ClassifyRequest, Usage
from foreword.serving.app.server import key_of, server_of, told
from foreword.serving.app.waiting import outcome, unless_gone
from foreword.serving.work import Asked

router = guarded()


@router.post("/v1/classify")
async def classify(given: ClassifyRequest, request: Request) -> Classification:
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
            asked.append(Asked(version, row, options=options, where=where))
        else:
            asked.append(Asked(version, fields=row, options=options, where=where))
    name = given.model if version is None else version.id
    told(request).update(prompt=name, rows=len(rows))
    future = server.engine.classify(asked, server.client(key_of(request)))
    found = await unless_gone(request.receive, outcome(future, server.limits.seconds))
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
