"""The edge as its callers see it: a real Envoy in front of real gRPC servers that behave as each test needs."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import envoy
import grpc
import httpx
import pytest
import pytest_asyncio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from satchel.auth.v1 import auth_pb2, auth_pb2_grpc
from satchel.health.v1 import health_pb2 as mesh_pb2
from satchel.health.v1 import health_pb2_grpc as mesh_pb2_grpc
from satchel.sessions.v1 import (
    device_sessions_pb2,
    device_sessions_pb2_grpc,
    exercise_sessions_pb2,
    exercise_sessions_pb2_grpc,
    stats_pb2,
    stats_pb2_grpc,
    sync_pb2,
    sync_pb2_grpc,
)
from satchel.uploads.v1 import uploads_pb2, uploads_pb2_grpc

from deploy.envoy.edge import MAX_REQUEST_BYTES, bootstrap
from deploy.envoy.routes import UNARY_TIMEOUT
from deploy.sockets import free_ports
from runtime.config import SERVICES
from runtime.readiness import ALIVE

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENVOY = Path(envoy.__file__).parent / "_bin" / "envoy"
DESCRIPTORS = Path(auth_pb2.__file__).parents[3] / "satchel.pb"
# Shorter than in production where a test has to wait for it.
REQUEST_TIMEOUT = "1s"
ROUTE_TIMEOUT = "0.3s"

JSON = {"content-type": "application/json"}
BODY = '{"error": {"code": "GONE", "message": "said by the service"}}'
Metadata = dict[str, str]


class Auth(auth_pb2_grpc.AuthServiceServicer):
    """SignIn and GetMe fail in the ways that services fail; GetSubscriptionStatus takes for ever."""

    async def SignIn(self, request: Any, context: Any) -> auth_pb2.SignInResponse:
        if request.email == "late":
            await context.send_initial_metadata((("ratelimit-limit", "5"),))
        if request.email in ("early", "late"):
            trailers = (
                ("x-error-body", BODY),
                ("x-http-status", "410"),
                ("retry-after", "7"),
                ("ratelimit-reset", "9"),
            )
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "said to gRPC", trailing_metadata=trailers)
        if request.email == "crash":
            raise RuntimeError("the password of the database")
        return auth_pb2.SignInResponse(access_token=request.email)

    async def GetSubscriptionStatus(self, request: Any, context: Any) -> auth_pb2.GetSubscriptionStatusResponse:
        await asyncio.sleep(30)
        return auth_pb2.GetSubscriptionStatusResponse()


class Exercises(exercise_sessions_pb2_grpc.ExerciseSessionServiceServicer):
    """Answers with what it was asked and keeps the metadata of the last call."""

    def __init__(self) -> None:
        self.metadata: Metadata = {}
        self.failures = 0
        self.calls = 0

    async def _count(self, context: Any) -> None:
        self.metadata = dict(context.invocation_metadata())
        self.calls += 1
        if self.failures:
            self.failures -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    async def CreateExerciseSession(
        self, request: Any, context: Any
    ) -> exercise_sessions_pb2.CreateExerciseSessionResponse:
        await self._count(context)
        await context.send_initial_metadata((("x-http-status", "201"), ("ratelimit-limit", "20")))
        return exercise_sessions_pb2.CreateExerciseSessionResponse(exercise_id=request.exercise_id)

    async def GetExerciseSession(self, request: Any, context: Any) -> exercise_sessions_pb2.GetExerciseSessionResponse:
        await self._count(context)
        return exercise_sessions_pb2.GetExerciseSessionResponse(id=request.id)

    async def ListExerciseSessions(
        self, request: Any, context: Any
    ) -> exercise_sessions_pb2.ListExerciseSessionsResponse:
        await self._count(context)
        found = exercise_sessions_pb2.ExerciseSession(exercise_id=request.exercise_id)
        return exercise_sessions_pb2.ListExerciseSessionsResponse(sessions=[found])


class Devices(device_sessions_pb2_grpc.DeviceSessionServiceServicer):
    """Tells what document arrived: its size as `created`, its content type as the only result."""

    async def BatchUploadJson(self, request: Any, context: Any) -> device_sessions_pb2.BatchUploadResponse:
        result = device_sessions_pb2.DeviceSessionResult(client_session_id=request.document.content_type)
        return device_sessions_pb2.BatchUploadResponse(results=[result], created=len(request.document.data))


class Sync(sync_pb2_grpc.SyncServiceServicer):
    """Says nothing, and knows when its caller has gone."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def Sync(self, request_iterator: Any, context: Any) -> AsyncIterator[sync_pb2.SyncResponse]:
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()
        yield sync_pb2.SyncResponse()


class Stats(stats_pb2_grpc.StatsServiceServicer):
    """Answers with as many bytes as the number of sessions it was told."""

    async def UpdateStats(self, request: Any, context: Any) -> stats_pb2.UpdateStatsResponse:
        return stats_pb2.UpdateStatsResponse(source={"size": "x" * request.total_sessions})


class Uploads(uploads_pb2_grpc.UploadServiceServicer):
    """Answers."""

    async def GetUploadLimits(self, request: Any, context: Any) -> uploads_pb2.GetUploadLimitsResponse:
        return uploads_pb2.GetUploadLimitsResponse(chunk_size=1)


class Mesh(mesh_pb2_grpc.HealthServiceServicer):
    """Answers."""

    async def CheckMesh(self, request: Any, context: Any) -> mesh_pb2.CheckMeshResponse:
        return mesh_pb2.CheckMeshResponse(status="ok")


@asynccontextmanager
async def serving(port: int, register: Callable[[grpc.aio.Server], None]) -> AsyncIterator[None]:
    """A gRPC server with a health check on `port` for as long as the block runs."""
    server = grpc.aio.server(
        options=(("grpc.max_receive_message_length", 16 << 20), ("grpc.max_send_message_length", 64 << 20))
    )
    checks = health.aio.HealthServicer()
    await checks.set(ALIVE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection(["satchel.auth.v1.AuthService", reflection.SERVICE_NAME], server)
    register(server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


class Edge:
    """The running edge, and what stands behind it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port, *ports = free_ports(1 + len(SERVICES))
        self.ports = dict(zip(SERVICES, ports, strict=True))
        self.exercises = Exercises()
        self.sync = Sync()
        self.url = f"http://127.0.0.1:{self.port}"

    def config(self) -> dict[str, Any]:
        """The configuration of production with the timeouts of a test."""
        config = bootstrap(
            listen=("127.0.0.1", self.port),
            admin_path=str(self.directory / "admin.sock"),
            services={name: ("127.0.0.1", port) for name, port in self.ports.items()},
            descriptor_set=DESCRIPTORS,
            log_path=str(self.log),
        )
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            if route.get("route", {}).get("timeout") == UNARY_TIMEOUT:
                route["route"]["idle_timeout"] = REQUEST_TIMEOUT
            if route.get("name", "").endswith("/Sync"):
                route["route"]["max_stream_duration"]["max_stream_duration"] = REQUEST_TIMEOUT
            if route.get("name", "").endswith("/GetSubscriptionStatus"):
                route["route"]["timeout"] = ROUTE_TIMEOUT
        return config

    @property
    def log(self) -> Path:
        return self.directory / "access.log"

    def register_sessions(self, server: grpc.aio.Server) -> None:
        exercise_sessions_pb2_grpc.add_ExerciseSessionServiceServicer_to_server(self.exercises, server)
        device_sessions_pb2_grpc.add_DeviceSessionServiceServicer_to_server(Devices(), server)
        stats_pb2_grpc.add_StatsServiceServicer_to_server(Stats(), server)
        sync_pb2_grpc.add_SyncServiceServicer_to_server(self.sync, server)

    def uploads(self) -> Any:
        """The uploads service, for as long as the block runs; no other test needs it."""
        return serving(
            self.ports["uploads"],
            lambda server: uploads_pb2_grpc.add_UploadServiceServicer_to_server(Uploads(), server),
        )

    async def raw(self, request: bytes) -> tuple[int, Metadata, str]:
        """The answer to these very bytes: status, headers, body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            async with asyncio.timeout(5):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                size = 0 if request.startswith(b"HEAD") else int(headers["content-length"])
                body = (await reader.readexactly(size)).decode()
        finally:
            writer.close()
        return int(lines[0].split()[1]), headers, body


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    running = Edge(tmp_path_factory.mktemp("edge"))
    file = running.directory / "envoy.json"
    file.write_text(json.dumps(running.config()))
    async with AsyncExitStack() as stack:
        for name, register in (
            ("auth", lambda server: auth_pb2_grpc.add_AuthServiceServicer_to_server(Auth(), server)),
            ("sessions", running.register_sessions),
            ("health", lambda server: mesh_pb2_grpc.add_HealthServiceServicer_to_server(Mesh(), server)),
        ):
            await stack.enter_async_context(serving(running.ports[name], register))
        with (running.directory / "envoy.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(str(ENVOY), "-c", str(file), "--use-dynamic-base-id", "--concurrency", "1"),
                *("--log-level", "warning", "--file-flush-interval-msec", "50"),
                stdout=log,
                stderr=log,
            )
        try:
            await until(lambda: _answers(running.url))
            yield running
        finally:
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
    assert "script log" not in (running.directory / "envoy.log").read_text(), "the Lua failed"


@pytest_asyncio.fixture(loop_scope="module")
async def client(edge: Edge) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=edge.url, timeout=5, trust_env=False) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}", options=(("grpc.enable_http_proxy", 0),)) as opened:
        yield opened


async def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    """Returns when the condition, an async function's call, holds."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def _answers(url: str) -> bool:
    async with httpx.AsyncClient(trust_env=False) as opened:
        try:
            return (await opened.get(f"{url}/healthz")).status_code == 200
        except httpx.TransportError:
            return False


def error(answer: httpx.Response) -> dict[str, Any]:
    """The envelope, after a look at everything that all envelopes have in common."""
    assert answer.headers["content-type"] == "application/json"
    assert not [name for name in answer.headers if name.startswith(("x-edge", "x-error", "x-http", "grpc-"))]
    (name, envelope), *rest = answer.json().items()
    assert (name, rest) == ("error", [])
    assert list(envelope) == ["code", "message", "details", "requestId", "timestamp"]
    assert envelope["requestId"] == "req_" + answer.headers["x-request-id"]
    said = datetime.strptime(envelope["timestamp"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - said).total_seconds()) < 10
    assert not re.search(r"TYPE_|satchel\.|[Pp]roto|upstream|\$|route", envelope["message"])
    found: dict[str, Any] = envelope
    return found


@pytest.mark.parametrize(
    ("path", "code"),
    [("/sessions", "VALIDATION_FAILED"), ("/v1/auth/signin", "INVALID_REQUEST")],
)
async def test_malformed_json_is_refused_in_the_dialect_of_the_path(
    client: httpx.AsyncClient, path: str, code: str
) -> None:
    answer = await client.post(path, content='{"a":', headers=JSON)
    assert answer.status_code == 400
    assert error(answer)["code"] == code
    assert error(answer)["details"] == []
    assert error(answer)["message"] == "The body is not valid JSON."


@pytest.mark.parametrize("body", ["[1]", "5", '"text"', "null"])
async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient, body: str) -> None:
    answer = await client.post("/sessions", content=body, headers=JSON)
    assert (answer.status_code, error(answer)["message"]) == (400, "The body must be a JSON object.")


async def test_a_body_that_is_not_utf8_or_too_deep_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/sessions", content=b'{"exerciseId": "\xff\xfe"}', headers=JSON)
    assert (answer.status_code, error(answer)["message"]) == (400, "The body is not valid UTF-8.")
    deep = '{"extra":' + '{"a":' * 200 + "1" + "}" * 201
    answer = await client.patch("/users/me/stats", content=deep, headers=JSON)
    assert (answer.status_code, error(answer)["message"]) == (400, "The body is nested too deeply.")


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "/sessions", '{"duration": "abc"}', "duration"),
        ("POST", "/sessions", '{"repetition_count": 1.5}', "repetitionCount"),
        ("POST", "/sessions", '{"repetitionCount": 99999999999}', "repetitionCount"),
        ("POST", "/sessions", '{"duration": {"a": 1}}', "duration"),
        ("POST", "/sessions", '{"isCompleted": "maybe $request_id %1"}', "isCompleted"),
        ("POST", "/sessions", '{"exerciseId": 5}', "exerciseId"),
        ("GET", "/sessions?pageSize=abc", None, "pageSize"),
        ("GET", "/v1/sessions?page_size=abc", None, "page_size"),
        ("PATCH", "/users/me/stats", '{"total_xp": "much"}', "total_xp"),
        ("PATCH", "/v1/users/me/stats", '{"totalSessions": []}', None),
    ],
)
async def test_a_value_of_the_wrong_type_is_named_as_the_route_names_it(
    client: httpx.AsyncClient, method: str, path: str, body: str | None, field: str | None
) -> None:
    answer = await client.request(method, path, content=body, headers=JSON if body else {})
    assert answer.status_code == 400
    if field is None:
        assert error(answer)["details"] == []
    else:
        assert error(answer)["details"] == [{"field": field, "reason": "INVALID_TYPE"}]
        assert error(answer)["message"].startswith(f"{field}: ")


async def test_an_unknown_query_parameter_is_refused_by_its_name(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/sessions?nope=1")
    assert (answer.status_code, error(answer)["code"]) == (400, "INVALID_REQUEST")
    assert error(answer)["details"] == [{"field": "nope", "reason": "UNKNOWN"}]


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/api/v1/nothing", "/ws/x", "/users/me/x", "/page/"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "TRACE"])
async def test_an_unknown_path_is_not_found(client: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, error(answer)["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    "path", ["/users/1/x", "/garmin_credentials", "/api/garmin/login", "/tokens/", "/activities/1?type=a"]
)
async def test_the_detail_dialect_is_one_sentence(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"detail": "There is nothing at this path for this method."}


async def test_a_known_path_with_another_verb_is_not_found(client: httpx.AsyncClient) -> None:
    for method in ("GET", "PUT"):
        answer = await client.request(method, "/v1/auth/signin")
        assert (answer.status_code, error(answer)["code"]) == (404, "NOT_FOUND")


async def test_the_grpc_path_of_an_rpc_is_closed_to_json(client: httpx.AsyncClient) -> None:
    answer = await client.post("/satchel.auth.v1.AuthService/SignIn", content="{}", headers=JSON)
    assert (answer.status_code, error(answer)["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize("path", ["/sessions", "/v1/sessions", "/sessions/batch_upload", "/users"])
async def test_a_body_that_says_it_is_too_large_is_refused_unread(edge: Edge, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_REQUEST_BYTES + 1}\r\n\r\n"
    status, headers, body = await edge.raw(head.encode())
    assert (status, headers["content-type"]) == (413, "application/json")
    answer = json.loads(body)
    assert answer == {"detail": "The request is too large."} or answer["error"]["code"] == "PAYLOAD_TOO_LARGE"


@pytest.mark.parametrize("path", ["/sessions", "/sessions/batch_upload"])
async def test_a_chunked_body_that_turns_out_too_large_is_refused(edge: Edge, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    status, headers, body = await edge.raw(head.encode() + chunk * (MAX_REQUEST_BYTES // 0x10000 + 1))
    assert (status, headers["content-type"]) == (413, "application/json")
    assert json.loads(body)["error"]["code"] == "PAYLOAD_TOO_LARGE"


async def test_a_document_of_any_type_up_to_the_limit_arrives_as_it_was_sent(client: httpx.AsyncClient) -> None:
    for content_type in ("application/json", "text/csv", "application/x-www-form-urlencoded"):
        answer = await client.post(
            "/sessions/batch_upload", content=b"\xff" * MAX_REQUEST_BYTES, headers={"content-type": content_type}
        )
        assert answer.status_code == 200
        assert answer.json()["created"] == MAX_REQUEST_BYTES
        assert answer.json()["results"][0]["client_session_id"] == content_type


async def test_an_answer_of_many_megabytes_arrives(client: httpx.AsyncClient) -> None:
    size = 20 * 1024 * 1024
    answer = await client.patch("/users/me/stats", json={"total_sessions": size})
    assert (answer.status_code, len(answer.json()["source"]["size"])) == (200, size)


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"GARBAGE\r\n\r\n", 400, "VALIDATION_FAILED"),
        (b"BREW /v1/sessions HTTP/1.1\r\nHost: x\r\n\r\n", 400, "VALIDATION_FAILED"),
        (b"GET /sessions HTTP/1.1\r\n\r\n", 400, "VALIDATION_FAILED"),
        (b"GET /sessions HTTP/1.1\r\nHost: x\r\na_b: 1\r\n\r\n", 400, "VALIDATION_FAILED"),
        (b"GET /sessions/a%2Fb HTTP/1.1\r\nHost: x\r\n\r\n", 400, "VALIDATION_FAILED"),
        (b"GET /sessions HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 40_000 + b"\r\n\r\n", 431, "PAYLOAD_TOO_LARGE"),
        (b"GET /sessions?a=" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "PAYLOAD_TOO_LARGE"),
        (b"POST /v1/auth/signin HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{", 408, "DEADLINE_EXCEEDED"),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404, "NOT_FOUND"),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 403, "AUTH_FORBIDDEN"),
        (b"GET http://elsewhere/v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404, "NOT_FOUND"),
        (b"GET /nothing HTTP/1.0\r\n\r\n", 404, "NOT_FOUND"),
        (
            b"GET /ws/nothing HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            404,
            "NOT_FOUND",
        ),
        (
            b"GET /sessions HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n",
            404,
            "NOT_FOUND",
        ),
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 404, "NOT_FOUND"),
        (b"GET /ws/mobile/sync HTTP/1.1\r\nHost: x\r\n\r\n", 400, "SYNC_001"),
        (b"POST /ws/mobile/sync/ HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 400, "SYNC_001"),
        (
            b"GET /ws/mobile/sync/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            400,
            "SYNC_001",
        ),
        (
            b"GET /ws/mobile/sync/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            503,
            "UNAVAILABLE",
        ),
    ],
    ids=lambda value: value[:30].decode() if isinstance(value, bytes) else None,
)
async def test_requests_that_are_hardly_http_are_answered_in_the_envelope(
    edge: Edge, request_bytes: bytes, status: int, code: str
) -> None:
    found, headers, body = await edge.raw(request_bytes)
    assert (found, headers["content-type"]) == (status, "application/json")
    envelope = json.loads(body)["error"]
    assert envelope["code"] == code
    assert re.fullmatch(r"req_[0-9a-f-]{36}", envelope["requestId"])
    assert envelope["requestId"] == "req_" + headers["x-request-id"]


async def test_head_has_the_headers_of_the_error_and_no_body(edge: Edge) -> None:
    status, headers, body = await edge.raw(b"HEAD /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, headers["content-type"], body) == (404, "application/json", "")


async def test_a_service_that_is_down_is_unavailable_at_once_and_back_soon_after_its_start(
    edge: Edge, client: httpx.AsyncClient
) -> None:
    async def up() -> bool:
        return (await client.get("/api/v1/uploads/limits")).status_code == 200

    async with edge.uploads():
        await until(up, 3)
    seen = len(edge.log.read_text())

    async def known_to_be_down() -> bool:
        async with asyncio.timeout(1):
            answer = await client.get("/api/v1/uploads/limits")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert error(answer)["code"] == "UNAVAILABLE"
        return '"flags":"UH"' in edge.log.read_text()[seen:]

    # First by refused connections, then by failed health checks.
    await until(known_to_be_down, 5)
    async with edge.uploads():
        await until(up, 3)


async def test_a_call_that_takes_too_long_ends_as_deadline_exceeded(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/subscription/status")
    assert (answer.status_code, error(answer)["code"]) == (504, "DEADLINE_EXCEEDED")


async def test_a_crash_says_nothing_of_itself(client: httpx.AsyncClient) -> None:
    answer = await client.post("/auth/login", json={"email": "crash"})
    assert (answer.status_code, error(answer)["code"]) == (500, "INTERNAL_ERROR")
    assert "password" not in answer.text


@pytest.mark.parametrize("when", ["early", "late"])
async def test_the_error_body_of_a_service_is_the_answer(client: httpx.AsyncClient, when: str) -> None:
    answer = await client.post("/v1/auth/signin", json={"email": when})
    assert (answer.status_code, answer.text) == (410, BODY)
    assert answer.headers["content-type"] == "application/json"
    assert (answer.headers["retry-after"], answer.headers["ratelimit-reset"]) == ("7", "9")
    assert ("ratelimit-limit" in answer.headers) == (when == "late")
    assert not [name for name in answer.headers if name.startswith(("x-error", "x-http", "grpc-"))]


async def test_a_service_says_201_in_its_first_headers(client: httpx.AsyncClient) -> None:
    answer = await client.post("/sessions", json={"exerciseId": "superman"})
    assert (answer.status_code, answer.headers["ratelimit-limit"]) == (201, "20")
    assert "x-http-status" not in answer.headers


async def test_names_are_camel_case_on_the_routes_that_say_so_and_snake_case_elsewhere(
    client: httpx.AsyncClient,
) -> None:
    for request in (
        client.post("/sessions", json={"exerciseId": "bridge"}),
        client.post("/sessions", json={"exercise_id": "bridge"}),
    ):
        answer = (await request).json()
        assert answer["exerciseId"] == "bridge"
        assert answer["pointsAwarded"] == 0
        assert "exercise_id" not in answer
    assert (await client.get("/sessions/batch_upload")).json()["exerciseId"] == ""
    batch = await client.post("/sessions/batch_upload", content="{}")
    assert "client_session_id" in batch.json()["results"][0]


async def test_query_parameters_are_named_either_way_and_keep_a_plus(client: httpx.AsyncClient) -> None:
    for name in ("exerciseId", "exercise_id"):
        answer = await client.get(f"/sessions?{name}=t%20raise%C3%A9+%2B")
        assert answer.json()["sessions"][0]["exerciseId"] == "t raiseé++"


async def test_native_grpc_passes_with_its_own_errors(channel: grpc.aio.Channel) -> None:
    stub = auth_pb2_grpc.AuthServiceStub(channel)
    call = stub.SignIn(auth_pb2.SignInRequest(email="a@example.org"))
    assert (await call).access_token == "a@example.org"
    assert "x-request-id" in dict(await call.initial_metadata())
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.SignIn(auth_pb2.SignInRequest(email="late"))
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "said to gRPC")
    assert dict(failed.value.trailing_metadata())["retry-after"] == "7"


async def test_a_grpc_caller_gets_the_refusals_of_the_edge_as_grpc(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await channel.unary_unary("/satchel.nothing.v1.Nothing/Do")(b"")
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await uploads_pb2_grpc.UploadServiceStub(channel).GetUploadLimits(uploads_pb2.GetUploadLimitsRequest())
    assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await channel.unary_unary("/satchel.auth.v1.AuthService/SignIn")(b"\xff\xff\xff")
    assert failed.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


async def test_a_stream_that_its_service_cannot_end_is_ended_on_both_sides(
    edge: Edge, channel: grpc.aio.Channel
) -> None:
    call = sync_pb2_grpc.SyncServiceStub(channel).Sync()

    async def talk() -> None:
        while True:  # so that nobody finds it idle
            await call.write(sync_pb2.SyncRequest())
            await asyncio.sleep(0.1)

    async with asyncio.timeout(20):
        with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
            await talk()
        assert await call.code() is not grpc.StatusCode.OK
        await edge.sync.left.wait()


async def test_reflection_and_health_answer_for_the_mesh(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([request])):
        names = [service.name for service in answer.list_services_response.service]
        assert "satchel.auth.v1.AuthService" in names
        break
    checked = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert checked.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("text", [False, True])
async def test_grpc_web_answers_with_a_message_and_trailers_in_the_body(client: httpx.AsyncClient, text: bool) -> None:
    message = auth_pb2.SignInRequest(email="web@example.org").SerializeToString()
    frame = b"\0" + len(message).to_bytes(4, "big") + message
    kind = "application/grpc-web-text" if text else "application/grpc-web+proto"
    answer = await client.post(
        "/satchel.auth.v1.AuthService/SignIn",
        content=base64.b64encode(frame) if text else frame,
        headers={"content-type": kind, "accept": kind, "x-grpc-web": "1", "origin": "https://app.example"},
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(kind)
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    body = _decode_segments(answer.content) if text else answer.content
    size = int.from_bytes(body[1:5], "big")
    assert auth_pb2.SignInResponse.FromString(body[5 : 5 + size]).access_token == "web@example.org"
    assert body[5 + size] == 0x80
    assert b"grpc-status:0" in body[5 + size :]


def _decode_segments(text: bytes) -> bytes:
    """Base64 whose pieces are padded one by one."""
    return b"".join(base64.b64decode(piece) for piece in re.findall(rb"[^=]+=*", text))


@pytest.mark.parametrize("path", ["/v1/auth/signin", "/sessions", "/satchel.auth.v1.AuthService/SignIn", "/nothing"])
async def test_a_browser_of_any_origin_may_ask_and_call(client: httpx.AsyncClient, path: str) -> None:
    origin = {"origin": "https://app.example"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    answer = await client.options(path, headers={**origin, **asked})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-credentials" not in answer.headers
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert {"authorization", "idempotency-key", "x-chunk-checksum", "x-device-id", "x-grpc-web"} <= set(allowed)
    assert int(answer.headers["access-control-max-age"]) > 0
    answer = await client.post(path, content="{", headers={**origin, **JSON})
    assert answer.status_code in (400, 404)
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"retry-after", "x-request-id", "grpc-status-details-bin"} <= set(exposed)
    assert {"ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"} <= set(exposed)


async def test_a_read_is_tried_again_when_the_service_is_unavailable(edge: Edge, client: httpx.AsyncClient) -> None:
    edge.exercises.calls, edge.exercises.failures = 0, 1
    assert (await client.get("/sessions/1")).status_code == 200
    assert edge.exercises.calls == 2


async def test_a_write_is_tried_once(edge: Edge, client: httpx.AsyncClient) -> None:
    edge.exercises.calls, edge.exercises.failures = 0, 1
    answer = await client.post("/sessions", json={})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (error(answer)["code"], edge.exercises.calls) == ("UNAVAILABLE", 1)


async def test_the_request_id_is_ours_and_the_same_everywhere(edge: Edge, client: httpx.AsyncClient) -> None:
    answer = await client.post("/sessions", json={}, headers={"x-request-id": "chosen-by-the-caller"})
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])
    assert edge.exercises.metadata["x-request-id"] == answer.headers["x-request-id"]
    answer = await client.post("/sessions", content="{", headers={**JSON, "x-request-id": "chosen"})
    assert error(answer)["requestId"] != "req_chosen"


async def test_a_caller_cannot_speak_as_the_edge_or_as_a_service(
    edge: Edge, client: httpx.AsyncClient, channel: grpc.aio.Channel
) -> None:
    forged = {
        "x-error-body": BODY,
        "x-http-status": "418",
        "x-edge-status": "400",
        "x-envoy-original-path": "/forged",
        "x-envoy-original-method": "FORGED",
        "x-envoy-external-address": "203.0.113.9",
        "x-forwarded-for": "203.0.113.9",
        "x-envoy-retry-on": "5xx",
        "x-envoy-made-up": "203.0.113.9",
    }
    answer = await client.post("/sessions", json={}, headers=forged)
    assert answer.status_code == 201
    assert edge.exercises.metadata["x-envoy-original-path"] == "/sessions"
    assert edge.exercises.metadata["x-envoy-original-method"] == "POST"
    assert edge.exercises.metadata["x-envoy-external-address"] == "127.0.0.1"
    assert not [name for name, value in edge.exercises.metadata.items() if "203.0.113.9" in str(value)]
    stub = exercise_sessions_pb2_grpc.ExerciseSessionServiceStub(channel)
    request = exercise_sessions_pb2.GetExerciseSessionRequest(id="1")
    await stub.GetExerciseSession(request, metadata=tuple(forged.items()))
    assert "x-envoy-original-path" not in edge.exercises.metadata
    assert (await client.get("/nothing", headers=forged)).status_code == 404


@pytest.mark.parametrize("name", ["a#b", "a$b", "a'b", "a*b", "a+b", "a%b", "a&b", "a!b", "a^b", "a`b", "a|b", "a~b"])
async def test_a_header_whose_name_grpc_does_not_know_is_dropped_and_the_call_goes_on(
    edge: Edge, client: httpx.AsyncClient, name: str
) -> None:
    answer = await client.get("/sessions/x", headers={name: "1", "a.b-c": "2"})
    assert answer.status_code == 200
    assert edge.exercises.metadata["a.b-c"] == "2"
    assert name not in edge.exercises.metadata


async def test_the_access_log_knows_the_path_and_no_secret(edge: Edge, client: httpx.AsyncClient) -> None:
    secret = "s3cr3t-of-the-caller"
    answer = await client.get(
        "/sessions/one", params={"id": secret}, headers={"authorization": f"Bearer {secret}", "cookie": secret}
    )
    lines: list[dict[str, Any]] = []

    async def logged() -> bool:
        lines[:] = [
            json.loads(line) for line in edge.log.read_text().splitlines() if answer.headers["x-request-id"] in line
        ]
        return bool(lines)

    await until(logged)
    (line,) = lines
    assert (line["method"], line["path"], line["status"]) == ("GET", "/sessions/one", answer.status_code)
    assert (line["cluster"], line["client"], line["grpc_status"]) == ("sessions", "127.0.0.1", 0)
    assert {"time", "ms", "bytes_in", "bytes_out", "flags", "user_agent"} <= line.keys()
    assert secret not in edge.log.read_text()
