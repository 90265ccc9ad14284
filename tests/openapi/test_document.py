"""The OpenAPI document: valid, whole, and about paths that the edge has."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from deploy.envoy import routes
from deploy.parts import ROOT
from runtime import contract
from runtime.contract import HttpRule, Policy
from runtime.errors import Reason

DOCUMENT: dict[str, Any] = json.loads((ROOT / "gen" / "openapi.json").read_text())
OPERATIONS = [
    (verb.upper(), path, operation) for path, item in DOCUMENT["paths"].items() for verb, operation in item.items()
]
OURS = [policy for policy in contract.policies().values() if policy.service not in contract.INFRASTRUCTURE]
DOORS = [(rule, policy) for policy in OURS for rule in policy.http]

# The paths that are promised to those who write apps.
PROMISED = {
    "/v1/auth/signup": ("POST",),
    "/auth/register": ("POST",),
    "/v1/auth/signin": ("POST",),
    "/auth/login": ("POST",),
    "/v1/auth/me": ("GET", "DELETE"),
    "/v1/auth/refresh": ("POST",),
    "/v1/auth/signout": ("POST",),
    "/v1/auth/devices": ("GET",),
    "/v1/auth/devices/{id}": ("DELETE",),
    "/v1/auth/anonymous": ("POST",),
    "/auth/sso/{provider}": ("POST",),
    "/v1/auth/sso/{provider}": ("POST",),
    "/auth/password/request-reset": ("POST",),
    "/auth/password/reset": ("POST",),
    "/v1/auth/password/request-reset": ("POST",),
    "/v1/auth/password/reset": ("POST",),
    "/.well-known/jwks.json": ("GET",),
    "/v1/subscription/status": ("GET",),
    "/v1/subscription/events": ("POST",),
    "/users": ("POST", "GET"),
    "/users/{user_id}": ("GET",),
    "/garmin_credentials/{user_id}": ("POST", "PUT", "GET"),
    "/tokens": ("POST",),
    "/tokens/{user_id}": ("PUT", "GET"),
    "/sessions": ("POST", "GET"),
    "/sessions/{id}": ("GET",),
    "/v1/sessions": ("POST", "GET"),
    "/sessions/batch_upload": ("POST",),
    "/v1/sessions/batch_upload": ("POST",),
    "/api/v1/sessions/batch_upload": ("POST",),
    "/users/me/stats": ("GET", "PATCH"),
    "/v1/users/me/stats": ("GET", "PATCH"),
    "/meta/schemas": ("GET",),
    "/meta/schemas/{domain}": ("GET",),
    "/v1/meta/schemas": ("GET",),
    "/v1/meta/schemas/{domain}": ("GET",),
    "/meta/app_version": ("GET",),
    "/v1/meta/app_version": ("GET",),
    "/health_metrics": ("POST", "GET"),
    "/workout_plans": ("POST",),
    "/workout_plans/{workout_id}": ("GET",),
    "/ws/mobile/sync/": ("GET",),
    "/api/v1/sync/push": ("POST",),
    "/api/v1/sync/pull": ("GET",),
    "/api/v1/sync/policies/{tenant_id}/{domain}": ("GET", "PUT"),
    "/api/v1/sync/conflicts": ("GET",),
    "/api/v1/sync/conflicts/{conflict_id}/resolve": ("POST",),
    "/api/v1/uploads/init": ("POST",),
    "/api/v1/uploads/{upload_id}/chunk/{chunk_index}": ("POST",),
    "/api/v1/uploads/{upload_id}/content": ("PUT",),
    "/api/v1/uploads/{upload_id}/status": ("GET",),
    "/api/v1/uploads/{upload_id}/finalize": ("POST",),
    "/api/v1/uploads/{upload_id}": ("DELETE",),
    "/files/{name}": ("GET", "HEAD"),
    "/activities/{user_id}": ("POST",),
    "/api/v1/sync/health": ("GET",),
    "/api/v1/sync/devices/{device_id}/health": ("GET",),
    "/healthz": ("GET",),
    "/api/garmin/login": ("POST",),
    "/api/garmin/mfa": ("POST",),
    "/api/v1/garmin/activities": ("POST",),
    "/api/v1/garmin/workouts": ("POST",),
    "/api/v1/garmin/health": ("POST",),
    "/api/v1/garmin/sync/status": ("GET",),
    "/openapi.json": ("GET",),
    "/docs": ("GET",),
}


def resolved(found: Any) -> Any:
    """What a reference in the document leads to."""
    while isinstance(found, dict) and found.keys() == {"$ref"}:
        place: Any = DOCUMENT
        for name in found["$ref"].removeprefix("#/").split("/"):
            place = place[name]
        found = place
    return found


def operation(verb: str, path: str) -> Any:
    return DOCUMENT["paths"][path][verb.lower()]


def test_the_document_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


@pytest.mark.parametrize("path", PROMISED)
def test_what_was_promised_is_in_the_document(path: str) -> None:
    for verb in PROMISED[path]:
        assert operation(verb, path)["responses"]


def test_every_door_of_the_contract_is_in_the_document_and_nothing_else_is() -> None:
    of_contract = {(rule.verb, rule.path) for rule, _ in DOORS}
    websocket = {("GET", path) for path in routes.WEBSOCKET_PATHS}
    assert {(verb, path) for verb, path, _ in OPERATIONS} == of_contract | websocket


def test_every_path_of_the_document_leads_somewhere_at_the_edge() -> None:
    # The edge takes the first route that matches: for a path with its variables filled in, that of its own rpc.
    found = routes.virtual_host(camel_transcoder={})["routes"]
    for verb, path, said in OPERATIONS:
        wanted = said.get("x-satchel-rpc", routes.WEBSOCKET_CLUSTER)
        headers = {":method": verb, **({} if "x-satchel-rpc" in said else {"upgrade": "websocket"})}
        assert first_match(found, re.sub(r"\{\w+\}", "x7", path), headers).get("name") == wanted, (verb, path)


def first_match(found: list[Any], path: str, headers: dict[str, str]) -> Any:
    for route in found:
        match = route["match"]
        if "connect_matcher" in match:
            continue
        fits = (
            match.get("path") == path
            or ("prefix" in match and path.startswith(match["prefix"]))
            or ("safe_regex" in match and re.fullmatch(match["safe_regex"]["regex"], path))
        )
        if fits and all(headers.get(one["name"]) == one["string_match"]["exact"] for one in match.get("headers", ())):
            return route
    raise AssertionError(f"nothing matches {path}")


def test_an_operation_is_called_as_its_rpc_and_no_two_alike() -> None:
    names = [said["operationId"] for _, _, said in OPERATIONS]
    assert len(names) == len(set(names))
    for _, _, said in OPERATIONS:
        if "x-satchel-rpc" in said:
            assert said["x-satchel-rpc"].rpartition("/")[2] in said["operationId"]


@pytest.mark.parametrize(("rule", "policy"), DOORS, ids=lambda value: getattr(value, "path", ""))
def test_a_door_needs_a_token_in_the_document_where_it_does_by_the_contract(rule: HttpRule, policy: Policy) -> None:
    said = operation(rule.verb, rule.path)
    access = said["x-satchel-access"]
    expected = {"PUBLIC": [], "OPTIONAL": [{}, {"bearer": []}]}.get(access, [{"bearer": []}])
    assert said["security"] == expected
    assert ("401" in said["responses"]) == (access != "PUBLIC" or "SIGNATURE" in str(said) or is_about_secrets(said))
    assert ("429" in said["responses"]) == bool(policy.limits)
    assert any(one["name"] == "Idempotency-Key" for one in said.get("parameters", ())) == policy.takes_key


def is_about_secrets(said: Any) -> bool:
    """Whether the rpc judges secrets of another kind than a bearer."""
    return any(reason in said["description"] for reason in ("INVALID_CREDENTIALS", "INVALID_TOKEN"))


def test_every_error_has_the_body_of_its_dialect_with_the_codes_of_the_error_table() -> None:
    codes = {reason.code_in(dialect) for reason in Reason for dialect in range(1, 4)}
    for name, response in DOCUMENT["components"]["responses"].items():
        dialect = name.partition(".")[0]
        for content in response.get("content", {}).values():
            schemas = content["schema"].get("anyOf", [content["schema"]])
            if dialect == "detail":
                assert schemas[0] == {"$ref": "#/components/schemas/Detail"}
            else:
                assert set(schemas[0]["properties"]["error"]["properties"]["code"]["enum"]) <= codes
            assert content["examples"]


def test_answers_are_spelled_as_the_edge_prints_them() -> None:
    def answered(verb: str, path: str, status: str) -> Any:
        return resolved(operation(verb, path)["responses"][status]["content"]["application/json"]["schema"])

    exercise = answered("POST", "/sessions", "201")
    assert exercise["properties"]["pointsAwarded"]["type"] == "integer"
    assert {"exerciseId", "isCompleted"} <= set(exercise["required"])
    assert exercise["properties"]["startTime"]["format"] == "date-time"
    assert "startTime" not in exercise["required"]  # a message may be unset
    stats = answered("GET", "/users/me/stats", "200")
    assert stats["properties"]["source"]["additionalProperties"] == {"type": "string"}
    assert stats["properties"]["total_xp"]["type"] == "number"
    assert stats["properties"]["extra"]["type"] == "object"


def test_a_batch_is_published_by_the_schema_of_its_document_and_not_as_bytes() -> None:
    for path in ("/sessions/batch_upload", "/v1/sessions", "/health_metrics", "/api/v1/sync/push"):
        (media_type, content) = next(iter(operation("POST", path)["requestBody"]["content"].items()))
        assert media_type == "application/json"
        schema = resolved(content["schema"])
        schema = schema.get("anyOf", [schema])[0]
        (items,) = (schema["properties"][name] for name in schema["required"])
        assert (items["minItems"], items["maxItems"]) == (1, 1000)
    assert "domain.puzzle" in DOCUMENT["components"]["schemas"]


def test_every_part_that_is_described_is_described_in_words() -> None:
    silent = [said["operationId"] for _, _, said in OPERATIONS if not said["summary"]]
    assert silent == []
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    assert {tag for _, _, said in OPERATIONS for tag in said["tags"]} == tags
