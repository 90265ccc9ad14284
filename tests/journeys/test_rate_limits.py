"""Rate limits as callers meet them: what is counted, what a refused caller is told, and what Redis adds to it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from satchel.auth.v1 import auth_pb2, auth_pb2_grpc
from satchel.options.v1 import options_pb2 as options
from structlog.testing import capture_logs

from deploy.parts import running
from deploy.redis import redis_part
from runtime import contract
from runtime.config import Config
from runtime.limits import in_words
from runtime.server import serving
from runtime.telemetry import LIMITS_LOCAL
from tests.conftest import ALL, Edge, config_for, envoy_for, until_healthy
from tests.factories import PASSWORD, Phone, exercise_session, filled

Start = Callable[..., Awaitable[Edge]]
OURS = {policy.method.rpartition("/")[2]: policy for policy in contract.policies().values()}


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[Any]:
    """A Redis of this test's own, with no count in it, that the test may stop and start."""
    part = redis_part(tmp_path / "redis")
    if part is None:
        pytest.skip("this machine has no Redis")
    async with running(part) as child:
        yield child


def limit_headers(answer: httpx.Response) -> tuple[int, int, int]:
    """limit, remaining and reset, which every limited answer carries."""
    limit, remaining, reset = (int(answer.headers[f"ratelimit-{name}"]) for name in ("limit", "remaining", "reset"))
    assert 0 <= remaining <= limit
    assert 1 <= reset <= 61
    return limit, remaining, reset


def assert_told_to_wait(answer: httpx.Response, code: str) -> None:
    assert answer.status_code == 429, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert (error["code"], error["details"]) == (code, [])
    assert error["requestId"] == f"req_{answer.headers['x-request-id']}"
    seconds = int(answer.headers["retry-after"])
    assert 1 <= seconds <= 61
    _, remaining, reset = limit_headers(answer)
    assert (remaining, reset) == (0, seconds)
    assert error["message"] == f"Too many requests; try again in {in_words(seconds)}."


async def sign_in(
    http: httpx.AsyncClient, email: str, password: str = PASSWORD, path: str = "signin"
) -> httpx.Response:
    door = {"signin": "/v1/auth/signin", "login": "/auth/login"}[path]
    return await http.post(door, json={"email": email, "password": password})


class TestLimits:
    async def test_five_sign_ins_a_minute_for_an_address_and_an_account(self, own_edge: Start, own_redis: Any) -> None:
        edge = await own_edge(rate_limits="on", redis_url=own_redis.part.url)
        first, second = await edge.phone(), await edge.phone()
        remaining = []
        for number in range(5):
            # Wrong passwords, other spellings and the other door count as well: it is guessing that is limited.
            email = first.email.upper() if number % 2 else f" {first.email} "
            password = PASSWORD if number == 4 else "wrong"
            answer = await sign_in(edge.http, email, password, "login" if number == 3 else "signin")
            assert answer.status_code == (200 if number == 4 else 401), answer.text
            limit, left, _ = limit_headers(answer)
            assert limit == 5
            remaining.append(left)
        assert remaining == [4, 3, 2, 1, 0]
        for path in ("signin", "login"):
            assert_told_to_wait(await sign_in(edge.http, first.email, path=path), "RATE_LIMIT")
        answer = await sign_in(edge.http, second.email)
        assert (answer.status_code, limit_headers(answer)[1]) == (200, 4)

    async def test_twenty_session_calls_a_minute_for_a_user(self, own_edge: Start, own_redis: Any) -> None:
        edge = await own_edge(rate_limits="on", redis_url=own_redis.part.url)
        phone, other = await edge.phone(), await edge.phone()
        for number in range(20):
            # A call that is refused for what it holds is a call.
            session = exercise_session(duration=-1) if number == 7 else exercise_session()
            answer = await phone.call("POST", "/sessions", json=session)
            assert answer.status_code == (400 if number == 7 else 201)
            assert limit_headers(answer)[:2] == (20, 19 - number)
        assert_told_to_wait(await phone.call("POST", "/sessions", json=exercise_session()), "RATE_LIMITED")
        assert (await other.call("POST", "/sessions", json=exercise_session())).status_code == 201
        for path in ("/v1/auth/me", "/users/me/stats"):
            assert (await phone.call("GET", path)).status_code == 200, "each rpc is counted by itself"

    async def test_ten_uploads_are_started_a_minute_by_a_user_and_chunks_are_counted_by_themselves(
        self, own_edge: Start, own_redis: Any
    ) -> None:
        edge = await own_edge(rate_limits="on", redis_url=own_redis.part.url)
        phone = await edge.phone()
        asked = {"filename": "a.txt", "total_size": 3, "mime_type": "text/plain", "file_hash": "ab" * 32}
        for number in range(10):
            answer = await phone.call("POST", "/api/v1/uploads/init", json=asked)
            assert (answer.status_code, limit_headers(answer)[:2]) == (201, (10, 9 - number))
        assert_told_to_wait(await phone.call("POST", "/api/v1/uploads/init", json=asked), "RATE_001")
        path = f"/api/v1/uploads/{answer.json()['upload_id']}/chunk/0"
        headers = {"x-chunk-checksum": hashlib.sha256(b"abc").hexdigest()}
        answer = await phone.call("POST", path, content=b"abc", headers=headers)
        assert (answer.status_code, limit_headers(answer)[:2]) == (200, (1000, 999)), answer.text

    async def test_each_dialect_has_its_own_word_and_grpc_callers_their_details(
        self, own_edge: Start, own_redis: Any
    ) -> None:
        edge = await own_edge(rate_limits="on", redis_url=own_redis.part.url)
        phone = await edge.phone()
        for path, rpc, code in (
            ("/v1/subscription/status", "GetSubscriptionStatus", "RATE_LIMIT"),
            ("/sessions", "ListExerciseSessions", "RATE_LIMITED"),
            ("/api/v1/uploads/limits", "GetUploadLimits", "RATE_001"),
        ):
            count = OURS[rpc].limits[0].count
            answers = await asyncio.gather(*(phone.call("GET", path) for _ in range(count + 1)))
            assert sorted(answer.status_code for answer in answers) == [200] * count + [429]
            assert_told_to_wait(max(answers, key=lambda answer: answer.status_code), code)
            assert all(limit_headers(answer)[0] == count for answer in answers)
        async with grpc.aio.insecure_channel(edge.target) as channel:
            stub = auth_pb2_grpc.AuthServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.GetSubscriptionStatus(auth_pb2.GetSubscriptionStatusRequest(), metadata=phone.metadata)
            error = raised.value
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            metadata = dict(error.trailing_metadata() or ())
            assert int(metadata["ratelimit-remaining"]) == 0
            status = rpc_status.from_call(error)
            assert status is not None
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            assert any(detail.Unpack(info) for detail in status.details)
            assert any(detail.Unpack(retry) for detail in status.details)
            assert (info.reason, info.domain) == ("RATE_LIMITED", "satchel")
            assert 1 <= retry.retry_delay.seconds <= 61

    async def test_what_is_not_limited_says_nothing_of_limits(self, own_edge: Start) -> None:
        edge = await own_edge(rate_limits="on")
        for path in ("/.well-known/jwks.json", "/healthz"):
            answer = await edge.http.get(path)
            assert not [name for name in answer.headers if name.startswith("ratelimit")]
        assert (await edge.http.get("/v1/auth/me")).status_code == 401

    async def test_every_limited_rest_door_carries_the_headers(self, own_edge: Start, own_redis: Any) -> None:
        edge = await own_edge(rate_limits="on", redis_url=own_redis.part.url)
        phone = await edge.administrator()
        doors = [(policy, rule) for policy in contract.policies().values() if policy.limits for rule in policy.http]
        # What ends the account comes last.
        for policy, rule in sorted(doors, key=lambda door: (door[1].verb, door[1].path) == ("DELETE", "/v1/auth/me")):
            path = filled(rule.path)
            if policy.events:  # which have no end
                async with edge.http.stream(rule.verb, path, headers=phone.headers) as answer:
                    assert answer.status_code == 200
            else:
                answer = await phone.call(rule.verb, path, json={"scope": "others"} if rule.verb != "GET" else None)
                assert answer.status_code < 500, answer.text
            limit = limit_headers(answer)[0]
            assert limit in {one.count for one in policy.limits}, path

    async def test_nobody_gets_more_by_naming_another_address(self, own_edge: Start, own_redis: Any) -> None:
        edge = await own_edge(rate_limits="on", redis_url=own_redis.part.url)
        body = {"email": "somebody@example.com", "password": "wrong"}
        names = ("x-forwarded-for", "x-envoy-external-address", "x-real-ip", "forwarded", "true-client-ip")
        answers = [
            await edge.http.post("/v1/auth/signin", json=body, headers=dict.fromkeys(names, f"10.0.0.{number}"))
            for number in range(6)
        ]
        assert [answer.status_code for answer in answers] == [401] * 5 + [429]

    async def test_behind_a_trusted_proxy_every_caller_has_an_address_of_its_own(
        self, database_url: str, own_redis: Any, tmp_path: Path
    ) -> None:
        config = config_for(
            tmp_path / "home", database_url=database_url, redis_url=own_redis.part.url, rate_limits="on"
        )
        async with serving(config, ALL), envoy_for(config, tmp_path / "edge", trusted_hops=1) as edge:
            await until_healthy(edge)
            body = {"email": "somebody@example.com", "password": "wrong"}

            async def tried(seen: str) -> int:
                headers = {"x-forwarded-for": seen} if seen else {}
                return (await edge.http.post("/v1/auth/signin", json=body, headers=headers)).status_code

            # The proxy adds at the end whom it saw; what stands before that is the caller's own word.
            assert [await tried(f"10.0.0.{number}, 203.0.113.9") for number in range(6)] == [401] * 5 + [429]
            assert await tried("203.0.113.9") == 429
            assert await tried("203.0.113.9, 198.51.100.7") == 401
            # Whoever comes past the proxy is known by where it comes from.
            assert await tried("") == 401

    def test_the_limits_of_the_published_apis_are_in_the_contract(self) -> None:
        """API.md, rate limits."""
        for rpc, count, scope in (
            ("SignUp", 5, options.SCOPE_IP_AND_ACCOUNT),
            ("SignIn", 5, options.SCOPE_IP_AND_ACCOUNT),
            ("Refresh", 60, options.SCOPE_IP),
            ("GetMe", 60, options.SCOPE_USER),
            ("GetSubscriptionStatus", 10, options.SCOPE_USER),
            ("CreateExerciseSession", 20, options.SCOPE_USER),
            ("UploadPuzzleSessionsJson", 20, options.SCOPE_USER),
            ("BatchUploadJson", 20, options.SCOPE_USER),
            ("InitUpload", 10, options.SCOPE_USER),
            ("UploadChunk", 1000, options.SCOPE_USER),
            ("UploadChunks", 1000, options.SCOPE_USER),
            ("UploadContent", 1000, options.SCOPE_USER),
        ):
            limits = [(limit.count, limit.window, limit.scope) for limit in OURS[rpc].limits]
            assert (count, 60, scope) in limits, rpc


@asynccontextmanager
async def replicas(database_url: str, redis_url: str, directory: Path) -> AsyncIterator[tuple[Edge, Edge]]:
    """Two meshes on one database and one Redis, each behind an Envoy of its own."""
    async with AsyncExitStack() as stack:
        edges = []
        for name in ("one", "two"):
            config: Config = config_for(
                directory / "home", database_url=database_url, redis_url=redis_url, rate_limits="on"
            )
            await stack.enter_async_context(serving(config, ALL))
            edges.append(await stack.enter_async_context(envoy_for(config, directory / name)))
        yield edges[0], edges[1]


async def admitted(phone: Phone, *doors: httpx.AsyncClient, tries: int) -> int:
    """How many of `tries` calls with a limit of 10 were let in, by turns at each of `doors`."""
    count = 0
    for number in range(tries):
        answer = await doors[number % len(doors)].get("/v1/subscription/status", headers=phone.headers)
        assert answer.status_code in (200, 429), answer.text
        count += answer.status_code == 200
    return count


class TestReplicas:
    async def test_two_replicas_share_the_counts(self, database_url: str, own_redis: Any, tmp_path: Path) -> None:
        async with replicas(database_url, own_redis.part.url, tmp_path) as (one, two):
            phone = await one.phone()
            assert await admitted(phone, one.http, two.http, tries=14) == 10

    async def test_without_redis_each_process_counts_for_itself_and_calls_go_on(
        self, database_url: str, own_redis: Any, tmp_path: Path
    ) -> None:
        async with replicas(database_url, own_redis.part.url, tmp_path) as (one, two):
            first, second, third = await one.phone(), await one.phone(), await two.phone()
            assert await admitted(first, one.http, two.http, tries=12) == 10

            own_redis.kill()
            await own_redis.wait()
            before, started = local_decisions(), time.monotonic()
            with capture_logs() as lines:
                assert await admitted(second, one.http, tries=12) == 10
                assert await admitted(second, two.http, tries=12) == 10
            assert local_decisions() - before == 24
            assert time.monotonic() - started < 10, "each call waits for a Redis that is not there"
            told = [line for line in lines if "Redis is away" in line["event"]]
            assert [line["log_level"] for line in told[:2]] == ["warning", "warning"], "each process says so"
            assert len(told) < 24, "and not at every call"

            await own_redis.start()
            await own_redis.until_ready()
            await until_shared(one, two)
            before = local_decisions()
            assert await admitted(third, one.http, two.http, tries=14) == 10
            assert local_decisions() == before

    async def test_with_redis_gone_from_the_start_the_mesh_starts_and_limits(
        self, own_edge: Start, tmp_path: Path
    ) -> None:
        edge = await own_edge(rate_limits="on", redis_url=f"unix://{tmp_path}/nothing.sock")
        phone = await edge.phone()
        before = local_decisions()
        assert await admitted(phone, edge.http, tries=12) == 10
        assert local_decisions() - before == 12
        health = (await edge.http.get("/healthz")).json()
        assert health["status"] == "degraded"

    async def test_without_redis_in_the_settings_limits_are_counted_here(self, own_edge: Start) -> None:
        edge = await own_edge(rate_limits="on", redis_url="")
        before = local_decisions()
        assert await admitted(await edge.phone(), edge.http, tries=12) == 10
        assert local_decisions() == before, "this is how it is meant, not a Redis that is away"


def local_decisions() -> float:
    return sum(
        sample.value for metric in LIMITS_LOCAL.collect() for sample in metric.samples if sample.name.endswith("_total")
    )


async def until_shared(*edges: Edge) -> None:
    """Returns when a call to each of the edges is counted in Redis again."""
    phones = [await edge.phone() for edge in edges]
    deadline = time.monotonic() + 10
    waiting = list(zip(edges, phones, strict=True))
    while waiting and time.monotonic() < deadline:
        still = []
        for edge, phone in waiting:
            before = local_decisions()
            await phone.call("GET", "/users/me/stats")
            await phone.call("GET", "/v1/auth/me")
            if local_decisions() != before:
                still.append((edge, phone))
        waiting = still
    assert not waiting, "Redis is back and not asked again"
