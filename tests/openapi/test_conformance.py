"""The OpenAPI document is true: whatever is sent to any door, the answer is one that the document tells of."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conftest import Edge
from tests.factories import Phone, device_session, exercise_session, puzzle_session
from tests.openapi.test_document import DOCUMENT, OPERATIONS, resolved

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 4
SEED = 20260226

# These would sign in at another world's servers.
OUTSIDE = ("LinkAccount", "VerifyMfa")
# Who calls these successfully cannot call again.
FATAL = ("DeleteMe", "SignOut")


def is_asked(said: Any) -> bool:
    """Whether one request and one answer of this server is what the operation is about."""
    streamed = "text/event-stream" in str(said["responses"])
    return "x-satchel-rpc" in said and not streamed and said["operationId"] not in OUTSIDE


ASKED = [(verb, path, said) for verb, path, said in OPERATIONS if is_asked(said)]


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """The document without leave to answer more than it tells of: apps may be sent new fields, this test may not."""
    document = copy.deepcopy(document)
    for name, schema in document["components"]["schemas"].items():
        if not name.startswith("domain."):
            for one in objects(schema):
                one.setdefault("additionalProperties", False)
    return document


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Each schema of an object with known properties, and no others by another part of it."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema and "allOf" not in schema:
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for one in schema:
            yield from objects(one)


SCHEMA = schemathesis.openapi.from_dict(closed(DOCUMENT))


@dataclass(frozen=True)
class Caller:
    """Somebody who calls, and the names of what there is for that one."""

    name: str
    headers: dict[str, str]
    known: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
async def callers(edge: Edge) -> list[Caller]:
    user, admin = await edge.phone(), await edge.administrator()
    return [
        Caller("user", user.headers, await provided(user)),
        Caller("admin", admin.headers, await provided(admin)),
        Caller("nobody", {}),
    ]


async def provided(phone: Phone) -> dict[str, Any]:
    """A thing of each kind for the phone's user, by the names that paths have for them."""

    async def made(verb: str, path: str, **request: Any) -> Any:
        answer = await phone.call(verb, path, **request)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    content = b"a file"
    digest = hashlib.sha256(content).hexdigest()
    session = await made("POST", "/sessions", json=exercise_session())
    await made("POST", "/v1/sessions", json={"sessions": [puzzle_session()]})
    await made("POST", "/sessions/batch_upload", json={"sessions": [device_session()]})
    await made("POST", "/health_metrics", json={"type": "mood", "value": 4, "timestamp": "2026-02-26T10:00:00Z"})
    plan = await made("POST", "/workout_plans", json={"name": "4 x 4", "steps": [{"type": "interval"}]})
    await made("POST", "/tokens", json={"name": "a script", "scopes": ["read"]})
    page = {"domain": "journal", "id": "page", "base_version": 0, "operation": "UPSERT", "data": {"text": "1"}}
    await made("POST", "/api/v1/sync/push", json={"changes": [page, {**page, "data": {"text": "2"}}]})
    asked_for = {"filename": "a.txt", "total_size": len(content), "mime_type": "text/plain", "file_hash": digest}
    upload = await made("POST", "/api/v1/uploads/init", json=asked_for)
    chunk = f"/api/v1/uploads/{upload['upload_id']}/chunk/0"
    await made("POST", chunk, content=content, headers={"x-chunk-checksum": digest})
    file = await made("POST", f"/api/v1/uploads/{upload['upload_id']}/finalize")
    begun = await made("POST", "/api/v1/uploads/init", json={**asked_for, "file_hash": "ab" * 32})
    conflicts = (await made("GET", "/api/v1/sync/conflicts"))["conflicts"]
    return {
        "id": session["id"],
        "workout_id": plan["id"],
        "user_id": phone.user_id,
        "upload_id": begun["upload_id"],
        "file_id": upload["upload_id"],
        "name": file["file_url"].rpartition("/")[2],
        "chunk_index": 0,
        "device_id": "phone-1",
        "conflict_id": conflicts[0]["id"] if conflicts else str(uuid4()),
        "domain": "journal",
        "tenant_id": 1,
        "platform": "ios",
        "provider": "nobody",
    }


def is_refusable(said: Any) -> bool:
    """Whether anything of a request could be wrong that reaches the operation: a path of another form does not."""
    places = {one["in"] for one in said.get("parameters", ())}
    return bool(said["security"]) or "requestBody" in said or "query" in places


@pytest.mark.parametrize(
    ("mode", "verb", "path", "said"),
    [
        *((GenerationMode.POSITIVE, *one) for one in ASKED),
        *((GenerationMode.NEGATIVE, *one) for one in ASKED if is_refusable(one[2])),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
async def test_the_answer_is_one_that_the_document_tells_of(
    edge: Edge, callers: list[Caller], mode: GenerationMode, verb: str, path: str, said: Any
) -> None:
    if not said["security"]:
        callers = callers[-1:]
    elif said["operationId"] in FATAL:
        callers = [Caller("leaver", (await edge.phone()).headers), callers[-1]]
    strategy = SCHEMA[path][verb].as_strategy(generation_mode=mode)

    @hypothesis.seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=strategy, by_name=st.booleans())
    def ask(case: Case, by_name: bool) -> None:
        # Nobody knows in whose dialect to refuse what is no proper HTTP.
        case.headers = {name: value for name, value in case.headers.items() if "_" not in name}
        generated = dict(case.path_parameters)
        for caller in callers:
            if by_name:
                case.path_parameters = {name: caller.known.get(name, value) for name, value in generated.items()}
            case.call_and_validate(base_url=edge.url, session=session, headers=caller.headers, checks=CHECKS)

    with requests.Session() as session:
        ask()


REQUIRED = [
    (verb, path, name)
    for verb, path, said in ASKED
    if verb != "HEAD"
    for content in [said.get("requestBody", {}).get("content", {}).get("application/json")]
    if content
    for name in resolved(content["schema"]).get("required", ())
]


@pytest.mark.parametrize(("verb", "path", "name"), REQUIRED)
async def test_what_the_document_requires_is_required(
    edge: Edge, callers: list[Caller], verb: str, path: str, name: str
) -> None:
    schema = resolved(DOCUMENT["paths"][path][verb.lower()]["requestBody"]["content"]["application/json"]["schema"])
    body = {one: sample(schema["properties"][one]) for one in schema["required"] if one != name}
    filled = path
    for variable in ("user_id", "id", "domain", "tenant_id", "platform", "conflict_id", "provider"):
        filled = filled.replace(f"{{{variable}}}", str(callers[1].known[variable]))
    answer = await edge.http.request(verb, filled, json=body, headers=callers[1].headers)
    assert 400 <= answer.status_code < 500, answer.text


def sample(schema: Any) -> Any:
    """A value of the schema's type; which one does not matter where something else is missing."""
    kinds = {"string": "x", "integer": 1, "number": 1, "boolean": True, "array": ["x"], "object": {}}
    return kinds.get(resolved(schema).get("type"), "x")
