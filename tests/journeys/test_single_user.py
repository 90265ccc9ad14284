"""An installation for one person: calls without a token act as that person, and nobody else can be behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import httpx
import pytest
from satchel.options.v1 import options_pb2 as options
from satchel.sessions.v1 import health_metrics_pb2, health_metrics_pb2_grpc

from deploy.parts import running
from deploy.settings import Settings
from deploy.stack import Stack
from runtime.config import ConfigError, from_environment
from runtime.single_user import HOST_HEADER, open_to
from tests.auth.callers import service_headers
from tests.conftest import Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import Phone
from tests.journeys.test_access import OURS, asked, request_for
from tests.polling import until
from tests.uploads.recordings import gpx, point

EMAIL = "ada@example.com"
METRIC = {"type": "steps", "value": 9000, "unit": "count", "timestamp": "2026-02-26T10:00:00Z"}

# What is added here can be called by whoever reaches the edge of such an installation.
OPEN = {
    *(
        f"/satchel.garmin.v1.GarminService/{name}"
        for name in (
            *("LinkAccount", "VerifyMfa", "GetLink", "UnlinkAccount", "SyncActivities", "SyncHealth", "SyncWorkouts"),
            *("GetSyncStatus", "CancelSync", "ListSyncs", "UpdateSchedule"),
        )
    ),
    "/satchel.sessions.v1.HealthMetricService/CreateHealthMetrics",
    "/satchel.sessions.v1.HealthMetricService/CreateHealthMetricsJson",
    "/satchel.sessions.v1.HealthMetricService/ListHealthMetrics",
    "/satchel.sessions.v1.WorkoutPlanService/CreateWorkoutPlan",
    "/satchel.sessions.v1.WorkoutPlanService/GetWorkoutPlan",
    "/satchel.uploads.v1.UploadService/AddActivity",
}
CLOSED = [
    method
    for method, policy in OURS.items()
    if method not in OPEN and policy.access not in (options.ACCESS_PUBLIC, options.ACCESS_OPTIONAL)
]


@pytest.fixture(scope="module")
async def alone(
    new_database: Callable[[], str], redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Edge]:
    """An installation of one person's, who has not signed up yet."""
    directory = tmp_path_factory.mktemp("alone")
    config = config_for(directory / "home", database_url=new_database(), redis_url=redis_url)
    part = service_part("all", config, directory, single_user=f" {EMAIL.upper()} ", bind="127.0.0.1")
    async with running(part), envoy_for(config, directory) as started:
        await until_healthy(started)
        yield started


@pytest.fixture(scope="module")
async def ada(alone: Edge) -> Phone:
    """The person's phone, which signs in as ever."""
    before = await steps(alone)
    assert before.status_code == 401
    assert before.json() == {
        "detail": "SATCHEL_SINGLE_USER names an account that does not exist: sign up with that address first."
    }
    phone = await alone.phone(email=EMAIL)

    async def known() -> bool:
        return (await steps(alone)).status_code == 200

    await until(known)
    return phone


async def steps(edge: Edge, **headers: str) -> httpx.Response:
    """A call of a program that knows nothing of tokens."""
    return await edge.http.get("/health_metrics", headers={name.replace("_", "-"): of for name, of in headers.items()})


async def test_what_comes_without_a_token_is_the_persons_own(alone: Edge, ada: Phone) -> None:
    stranger = await alone.phone()
    made = await alone.http.post("/health_metrics", json=METRIC)
    assert made.status_code == 201, made.text
    path = f"/activities/{ada.user_id}"
    assert (await alone.http.post(path, files={"file": ("a.gpx", gpx(point()))})).status_code == 201
    assert len((await ada.call("GET", "/health_metrics")).json()["health_metrics"]) == 1
    assert len((await ada.call("GET", "/api/v1/files")).json()["files"]) == 1
    assert (await stranger.call("GET", "/health_metrics")).json()["health_metrics"] == []
    others = f"/activities/{stranger.user_id}"
    assert (await alone.http.post(others, files={"file": ("a.gpx", gpx(point()))})).status_code == 403


@pytest.mark.parametrize(
    ("verb", "path", "body"),
    [
        ("POST", "/api/garmin/login", {"username": "", "password": ""}),
        ("POST", "/api/v1/garmin/activities", {}),
        ("GET", "/api/v1/garmin/sync/status", None),
    ],
)
async def test_the_connector_is_reached_as_its_published_calls_show(
    alone: Edge, ada: Phone, verb: str, path: str, body: dict[str, str] | None
) -> None:
    headers = {"content-type": "application/json"}
    anybody = await alone.http.request(verb, path, headers=headers, json=body)
    by_token = await ada.call(verb, path, json=body)
    assert anybody.status_code == by_token.status_code != 401


async def test_who_has_a_token_is_who_it_says(alone: Edge, ada: Phone) -> None:
    stranger = await alone.phone()
    assert (await stranger.call("GET", f"/users/{stranger.user_id}")).json()["id"] == stranger.user_id
    made = await stranger.call("POST", "/health_metrics", json={**METRIC, "type": "weight"})
    assert made.status_code == 201
    assert "weight" not in (await steps(alone)).text
    refused = await alone.http.get("/health_metrics", headers=service_headers(alone))
    assert refused.status_code == 403


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer x", "Basic YWRhOng=", "x", "Bearer a.b.c"])
async def test_a_bad_token_is_never_the_single_user(alone: Edge, ada: Phone, value: str) -> None:
    assert (await steps(alone, authorization=value)).status_code == 401


async def test_a_token_of_a_sign_in_that_was_ended_is_never_the_single_user(alone: Edge, ada: Phone) -> None:
    phone = await alone.phone()
    assert (await phone.call("POST", "/v1/auth/signout", json={"scope": "this"})).status_code == 200

    async def ended() -> bool:
        return (await phone.call("GET", "/health_metrics")).status_code == 401

    await until(ended)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:{port}"},
        {"host": "localhost.evil.example:{port}"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "192.168.1.5:{port}"},
        {"host": "evil.example", "origin": "http://evil.example"},
        {"host": "evil.example", HOST_HEADER: "localhost"},
        {"host": "evil.example", "x-forwarded-host": "localhost"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"host": "[", "origin": "http://["},
        {"origin": "http://localhost:1"},
        {"origin": "http://localhost"},
        {"origin": "http://127.0.0.1:{port}@evil.example"},
        {"origin": "https://evil.example/127.0.0.1:{port}"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:{port}", "sec-fetch-site": "cross-site"},
    ],
)
async def test_pages_of_other_sites_need_a_token(alone: Edge, ada: Phone, headers: dict[str, str]) -> None:
    sent = {name: value.format(port=alone.port) for name, value in headers.items()}
    answer = await alone.http.post("/health_metrics", json=METRIC, headers=sent)
    assert answer.status_code == 401, answer.text
    assert "token" in answer.text
    assert (await alone.http.post("/health_metrics", json=METRIC, headers={**sent, **ada.headers})).status_code == 201


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:{port}"},
        {"host": "LOCALHOST"},
        {"host": "[::1]:{port}"},
        {"origin": "http://127.0.0.1:{port}", "sec-fetch-site": "same-origin"},
        {"host": "localhost:{port}", "origin": "http://localhost:{port}"},
        {"sec-fetch-site": "none"},
    ],
)
async def test_programs_and_pages_of_this_server_need_none(alone: Edge, ada: Phone, headers: dict[str, str]) -> None:
    answer = await steps(alone, **{name: value.format(port=alone.port) for name, value in headers.items()})
    assert answer.status_code == 200, answer.text


async def test_callers_of_grpc_without_a_token_are_the_person_too(alone: Edge, ada: Phone) -> None:
    request = health_metrics_pb2.ListHealthMetricsRequest()
    async with grpc.aio.insecure_channel(alone.target) as channel:
        await health_metrics_pb2_grpc.HealthMetricServiceStub(channel).ListHealthMetrics(request)
    async with grpc.aio.insecure_channel(alone.mesh.address("sessions")) as past_the_edge:
        stub = health_metrics_pb2_grpc.HealthMetricServiceStub(past_the_edge)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListHealthMetrics(request)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_these_rpcs_are_open_and_no_others() -> None:
    assert {method for method, policy in OURS.items() if open_to(policy)} == OPEN


@pytest.mark.parametrize("method", CLOSED)
async def test_all_others_need_a_token(alone: Edge, ada: Phone, method: str) -> None:
    async with grpc.aio.insecure_channel(alone.target) as channel:
        assert await asked(channel, method, request_for(method), ()) == (None, "MISSING_BEARER_TOKEN")


async def test_without_the_setting_each_call_needs_a_token(edge: Edge) -> None:
    answer = await steps(edge)
    assert (answer.status_code, answer.json()) == (401, {"detail": "The call needs an access token."})


async def test_the_person_is_whoever_has_the_address_now(own_edge: Callable[..., Awaitable[Edge]]) -> None:
    edge = await own_edge(single_user=EMAIL, bind="127.0.0.1")
    first = await edge.phone(email=EMAIL)

    async def known() -> bool:
        return (await edge.http.post("/health_metrics", json=METRIC)).status_code == 201

    await until(known)
    assert (await first.call("DELETE", "/v1/auth/me")).is_success

    async def nobody() -> bool:
        return (await steps(edge)).status_code == 401

    await until(nobody)
    second = await edge.phone(email=EMAIL)
    await until(known)
    assert (await second.call("GET", "/health_metrics")).json()["health_metrics"] != []


async def test_an_administrators_rights_are_not_lent(own_edge: Callable[..., Awaitable[Edge]]) -> None:
    edge = await own_edge(single_user=EMAIL, bind="127.0.0.1", admin_email=EMAIL)
    phone = await edge.phone(email=EMAIL)
    assert (await phone.call("GET", "/users", params={"email": EMAIL})).json()["role"] == "admin"
    assert (await edge.http.get("/users", params={"email": EMAIL})).status_code == 401
    events = (await phone.call("GET", "/v1/auth/security-events")).json()["events"]
    assert "token_exchanged" not in {one["kind"] for one in events}

    async def known() -> bool:
        return (await steps(edge)).status_code == 200

    await until(known)
    events = (await phone.call("GET", "/v1/auth/security-events")).json()["events"]
    assert "token_exchanged" in {one["kind"] for one in events}  # who acts for somebody leaves a trace


async def test_calls_without_a_token_spend_what_a_user_may(
    own_edge: Callable[..., Awaitable[Edge]],
) -> None:
    edge = await own_edge(single_user=EMAIL, bind="127.0.0.1", rate_limits="on")
    phone = await edge.phone(email=EMAIL)

    async def known() -> bool:
        return (await steps(edge)).status_code == 200

    await until(known)
    by_token = int((await phone.call("GET", "/health_metrics")).headers["ratelimit-remaining"])
    without = await steps(edge)
    assert int(without.headers["ratelimit-remaining"]) == by_token - 1


ALLOWED = {"SATCHEL_SINGLE_USER_ANYWHERE": "on"}


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({}, "SATCHEL_BIND does not say"),
        ({"SATCHEL_BIND": "0.0.0.0"}, "listens on 0.0.0.0"),
        ({"SATCHEL_BIND": "::"}, "listens on ::"),
        ({"SATCHEL_BIND": "192.168.1.5"}, "listens on 192"),
        ({"SATCHEL_BIND": "127.0.0.1", "SATCHEL_TRUSTED_HOPS": "1"}, "tells of a proxy"),
        ({"SATCHEL_BIND": "127.0.0.1", "SATCHEL_PUBLIC_URL": "https://api.example.com"}, "tells of a proxy"),
    ],
)
def test_where_others_may_call_it_does_not_start(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], why: str
) -> None:
    for name, value in {"SATCHEL_DATABASE_URL": "x", "SATCHEL_SINGLE_USER": EMAIL, **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=why) as caught:
        from_environment()
    assert str(caught.value).startswith("SATCHEL_SINGLE_USER: ")
    monkeypatch.setenv("SATCHEL_SINGLE_USER_ANYWHERE", "on")
    assert from_environment().single_user == EMAIL


def test_an_address_that_is_none_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SATCHEL_DATABASE_URL", "x")
    monkeypatch.setenv("SATCHEL_SINGLE_USER", "ada")
    with pytest.raises(ConfigError, match="SATCHEL_SINGLE_USER"):
        from_environment()


def test_the_stack_tells_its_services_where_the_edge_listens(tmp_path: Any) -> None:
    settings = Settings(port=1, bind="0.0.0.0", home=tmp_path, database_url="x", redis_url="x", workers=1)
    assert Stack.build(settings).environment["SATCHEL_BIND"] == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "status"), [("192.168.1.5:8080", 200), ("phone.example:8080", 200), ("evil.example", 401)]
)
async def test_where_it_is_allowed_anywhere_names_still_count(
    own_edge: Callable[..., Awaitable[Edge]], host: str, status: int
) -> None:
    given = {"bind": "0.0.0.0", "single_user_anywhere": "on", "public_url": "http://phone.example:8080"}
    edge = await own_edge(single_user=EMAIL, **given)
    await edge.phone(email=EMAIL)

    async def answered() -> bool:
        return (await steps(edge, host=host)).status_code == status

    await until(answered)
