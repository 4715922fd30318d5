"""Requests made up from the OpenAPI document: no failure inside, and every answer as the document says.

python -m pytest tests/serving/test_schemathesis.py
"""

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from foreword.models.load import load
from foreword.serving.app import Limits, make_app
from foreword.serving.app.schemas import MEANINGS
from foreword.serving.engine import Engine
from foreword.serving.keys import KeyRing
from foreword.serving.store import PromptStore
from tests.serving.running import NAMES, ROOM, Server, filled

CHECKS = (
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
)  # fmt: skip
MODELS = ("two", "foreword-tiny-causal", "beta@1")
HERE = {"Host": "127.0.0.1"}
EACH = 25  # made-up requests of each operation


OPEN = ("GET /health", "GET /ready")
# Schemathesis draws the ids of its cases with it; what is asked comes from hypothesis alone.
RANDOM = "ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning"


@pytest.fixture(scope="module")
def lm():
    return load("foreword-tiny-causal")


@pytest.fixture
def root(tmp_path, lm):
    return filled(tmp_path / "store", lm)


@pytest.fixture
def app(root, lm):
    with Engine(lm, ROOM) as engine:
        yield make_app(Server(engine, PromptStore.open(root), KeyRing.open(root), Limits(tokens=20, rows=8)), len)


@pytest.mark.filterwarnings(RANDOM)
@pytest.mark.parametrize("keys", [False, True], ids=["without keys", "with keys"])
def test_made_up_requests(app, root, keys):
    """The same ones each time. Where the server has keys, each is asked without one as well."""
    headers = {**HERE, **({"Authorization": f"Bearer {KeyRing.open(root).add(['*'], ['*'])}"} if keys else {})}
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=HERE)
    given: dict[str, set[int]] = {}

    def tries(operation):
        seen = given.setdefault(operation.label, set())
        tried = 0

        @hypothesis.settings(
            max_examples=EACH, deadline=None, derandomize=True, database=None,
            suppress_health_check=[*hypothesis.HealthCheck],
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy())
        def holds(case):
            nonlocal tried
            tried += 1
            # What is there, two times of three, so that more than the name is looked at.
            if tried % 3 and isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = MODELS[tried % len(MODELS)]
                if "input" in case.body and tried % 3 == 1:  # the rest of it is made up as before
                    case.body["input"] = "a film"
                    case.body.pop("options", None)
            for key, one in (("name", [*NAMES][tried % len(NAMES)]), ("model", MODELS[tried % len(MODELS)])):
                if tried % 3 and key in (case.path_parameters or {}):
                    case.path_parameters[key] = one
            if keys:
                refused = case.call(headers=HERE)
                case.validate_response(refused, checks=CHECKS)
                assert (refused.status_code == 401) == (operation.label not in OPEN)
            answer = case.call(headers=headers)
            case.validate_response(answer, checks=CHECKS)
            assert answer.status_code != 401
            assert answer.status_code < 300 or answer.status_code in (*MEANINGS, 405)
            seen.add(answer.status_code)

        return holds

    for found in schema.get_all_operations():
        tries(found.ok())()
    assert len(given) == 18
    # Made-up requests come through, and are not merely refused at the door.
    for label in ("POST /v1/completions", "POST /v1/classify", "GET /v1/prompts", "GET /v1/models/{model}"):
        assert 200 in given[label], (label, given[label])
        assert label == "GET /v1/prompts" or {400, 404} & given[label], (label, given[label])


def test_the_document_says_what_everything_is(app):
    document = app.openapi()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, told in operations.items():
            assert told["description"], (method, path)
            assert all(parameter.get("description") for parameter in told.get("parameters", [])), (method, path)
            if path.startswith("/v1/"):
                assert (
                    told["security"]
                    and {"401", "429", "504"} <= {*told["responses"]}
                    and "422" not in told["responses"]
                )
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request"):
            assert schema["examples"], name


def test_the_document_s_examples_are_answered(app):
    """With the names that the examples have put in place of what is there."""
    from starlette.testclient import TestClient

    document = app.openapi()
    with TestClient(app, headers=HERE) as http:
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/classify"):
            kind = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            [example] = document["components"]["schemas"][kind.split("/")[-1]]["examples"]
            tokens = (
                {} if "classify" in path else {"max_tokens": 4}
            )  # fewer than the example's, as the server's limit is
            answer = http.post(path, json={**example, "model": "acme-reviews", **tokens})
            assert answer.status_code == 200, answer.text
