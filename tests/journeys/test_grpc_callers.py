"""What gRPC callers see through the edge: typed calls, rich errors, reflection, health, gRPC-Web, command lines."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from satchel.auth.v1 import auth_pb2, auth_pb2_grpc
from satchel.sessions.v1 import (
    device_sessions_pb2,
    device_sessions_pb2_grpc,
    exercise_sessions_pb2,
    exercise_sessions_pb2_grpc,
    puzzle_sessions_pb2,
    puzzle_sessions_pb2_grpc,
    stats_pb2,
    stats_pb2_grpc,
)

from deploy.parts import ROOT
from runtime import contract
from runtime.server import MAX_MESSAGE_BYTES
from tests.conftest import Edge
from tests.factories import PASSWORD, Phone, device_session, puzzle_session

SIGN_IN = "/satchel.auth.v1.AuthService/SignIn"
SIGN_OUT = "/satchel.auth.v1.AuthService/SignOut"
BUF = Path(sys.executable).parent / "buf"

Detail = TypeVar("Detail", bound=Message)


@pytest.fixture(scope="module")
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(edge.target) as opened:
        yield opened


class Refusal:
    """A failed call, with its google.rpc details."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code, self.message = error.code(), error.details() or ""
        self.metadata = dict(error.trailing_metadata() or ())
        self.initial = dict(error.initial_metadata() or ())
        self.status = rpc_status.from_call(error)

    def detail(self, kind: type[Detail]) -> Detail | None:
        for packed in self.status.details if self.status else ():
            found = kind()
            if packed.Unpack(found):
                return found
        return None

    @property
    def reason(self) -> str:
        info = self.detail(error_details_pb2.ErrorInfo)
        assert info is not None, f"{self.code}: {self.message} has no ErrorInfo"
        assert info.domain == "satchel"
        return str(info.reason)

    @property
    def fields(self) -> list[tuple[str, str]]:
        bad = self.detail(error_details_pb2.BadRequest)
        return [(one.field, one.reason) for one in bad.field_violations] if bad else []


async def refused(call: Any) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return Refusal(raised.value)


def raw(channel: grpc.aio.Channel, method: str, data: bytes, **given: Any) -> Any:
    """A call with these very bytes for its message."""
    return channel.unary_unary(method)(data, timeout=20, **given)


class TestErrors:
    async def test_a_missing_token_is_told_with_reason_domain_and_request_id(self, channel: grpc.aio.Channel) -> None:
        refusal = await refused(auth_pb2_grpc.AuthServiceStub(channel).GetMe(auth_pb2.GetMeRequest()))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "MISSING_BEARER_TOKEN")
        assert refusal.fields == []
        request = refusal.detail(error_details_pb2.RequestInfo)
        known = refusal.metadata.get("x-request-id") or refusal.initial.get("x-request-id")
        assert request is not None
        assert request.request_id == f"req_{known}"
        assert refusal.detail(error_details_pb2.RetryInfo) is None

    async def test_a_bad_field_is_named_in_snake_case(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        stub = exercise_sessions_pb2_grpc.ExerciseSessionServiceStub(channel)
        request = exercise_sessions_pb2.CreateExerciseSessionRequest(
            exercise_id="x", start_time="2026-02-26T10:00:00Z", duration=1, repetition_count=-1, is_completed=True
        )
        refusal = await refused(stub.CreateExerciseSession(request, metadata=phone.metadata))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
        assert refusal.fields == [("repetition_count", "OUT_OF_RANGE")]
        assert refusal.message.startswith("repetition_count: ")
        assert refusal.status is not None
        assert (refusal.status.code, refusal.status.message) == (refusal.code.value[0], refusal.message)
        request.ClearField("exercise_id")
        refusal = await refused(stub.CreateExerciseSession(request, metadata=phone.metadata))
        assert (refusal.reason, refusal.fields) == ("FIELD_MISSING", [("exercise_id", "REQUIRED")])

    async def test_what_is_there_already_or_not_at_all_has_its_own_code(
        self, channel: grpc.aio.Channel, phone: Phone
    ) -> None:
        auth = auth_pb2_grpc.AuthServiceStub(channel)
        refusal = await refused(auth.SignUp(auth_pb2.SignUpRequest(email=phone.email, password=PASSWORD)))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "EMAIL_REGISTERED")
        refusal = await refused(auth.SignIn(auth_pb2.SignInRequest(email=phone.email, password="wrong")))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS")
        sessions = exercise_sessions_pb2_grpc.ExerciseSessionServiceStub(channel)
        request = exercise_sessions_pb2.GetExerciseSessionRequest(id=str(uuid4()))
        refusal = await refused(sessions.GetExerciseSession(request, metadata=phone.metadata))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")

    async def test_no_error_body_of_rest_reaches_a_grpc_caller(self, channel: grpc.aio.Channel) -> None:
        refusal = await refused(raw(channel, SIGN_OUT, b""))
        assert not {"x-error-body", "x-http-status"} & {*refusal.metadata, *refusal.initial}

    @pytest.mark.parametrize(
        "method",
        [
            "/satchel.auth.v1.AuthService/Nope",
            "/satchel.nope.v1.NopeService/Nope",
            "/nope.Nope/Nope",
            "/satchel.auth.v1.AuthService/",
            "/grpc.health.v1.Health/Nope",
        ],
    )
    async def test_an_unknown_method_is_unimplemented(self, channel: grpc.aio.Channel, method: str) -> None:
        assert (await refused(raw(channel, method, b""))).code == grpc.StatusCode.UNIMPLEMENTED

    @pytest.mark.parametrize(
        "data",
        [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f", b"\x0a\x03\xed\xa0\x80", b"\x07", b"\x0b" * 10_000],
        ids=["bytes", "utf8", "cut", "surrogate", "wire type", "groups"],
    )
    async def test_bytes_that_are_no_message_are_malformed(self, channel: grpc.aio.Channel, data: bytes) -> None:
        refusal = await refused(raw(channel, SIGN_IN, data))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
        assert refusal.detail(error_details_pb2.RetryInfo) is None

    async def test_a_message_over_the_limit_is_refused_and_waiting_does_not_help(
        self, channel: grpc.aio.Channel
    ) -> None:
        request = auth_pb2.SignInRequest(email="a@example.com", password="x" * MAX_MESSAGE_BYTES)
        refusal = await refused(raw(channel, SIGN_IN, request.SerializeToString()))
        assert refusal.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)
        assert refusal.detail(error_details_pb2.RetryInfo) is None
        assert "retry-after" not in refusal.metadata
        assert (await raw(channel, "/satchel.auth.v1.AuthService/GetJwks", b"")) != b""

    async def test_text_that_postgresql_cannot_hold_is_the_callers_fault(self, channel: grpc.aio.Channel) -> None:
        stub = auth_pb2_grpc.AuthServiceStub(channel)
        refusal = await refused(stub.SignIn(auth_pb2.SignInRequest(email="a\0b@example.com", password=PASSWORD)))
        assert refusal.code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT)

    async def test_a_deadline_of_the_callers_is_kept(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        stub = auth_pb2_grpc.AuthServiceStub(channel)
        request = auth_pb2.SignInRequest(email=phone.email, password=PASSWORD)
        refusal = await refused(stub.SignIn(request, timeout=0.001))
        assert refusal.code == grpc.StatusCode.DEADLINE_EXCEEDED

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
    async def test_what_is_no_number_is_no_total(self, channel: grpc.aio.Channel, phone: Phone, number: float) -> None:
        stub = stats_pb2_grpc.StatsServiceStub(channel)
        request = stats_pb2.UpdateStatsRequest(total_calories=number)
        refusal = await refused(stub.UpdateStats(request, metadata=phone.metadata))
        assert (refusal.reason, [field for field, _ in refusal.fields]) == ("FIELD_INVALID", ["total_calories"])
        request = stats_pb2.UpdateStatsRequest()
        request.extra.update({"a": number})
        refusal = await refused(stub.UpdateStats(request, metadata=phone.metadata))
        assert (refusal.reason, [field for field, _ in refusal.fields]) == ("FIELD_INVALID", ["extra"])

    async def test_an_idempotency_key_may_be_in_the_message(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        stub = stats_pb2_grpc.StatsServiceStub(channel)
        request = stats_pb2.UpdateStatsRequest(total_xp=1, idempotency_key="k")
        await stub.UpdateStats(request, metadata=phone.metadata)
        await stub.UpdateStats(request, metadata=phone.metadata)
        request.total_xp = 2
        refusal = await refused(stub.UpdateStats(request, metadata=phone.metadata))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "IDEMPOTENCY_CONFLICT")
        request.idempotency_key = "a b"
        refusal = await refused(stub.UpdateStats(request, metadata=phone.metadata))
        assert refusal.fields == [("idempotency_key", "INVALID_FORMAT")]


def recording(**given: Any) -> device_sessions_pb2.DeviceSession:
    return json_format.ParseDict(device_session(**given), device_sessions_pb2.DeviceSession())


def puzzle(**given: Any) -> puzzle_sessions_pb2.PuzzleSession:
    return json_format.ParseDict(puzzle_session(**given), puzzle_sessions_pb2.PuzzleSession())


OUT_OF_TIME = (2**62, -(2**62), 253_402_300_800, -62_135_596_801)


class TestTypedBatches:
    async def test_a_recording_with_every_field_is_stored(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        session = recording(samples=[[0, 140], [1, 141.5], None, "pause", {"a": True}])
        assert len(session.ListFields()) == len(session.DESCRIPTOR.fields)
        stub = device_sessions_pb2_grpc.DeviceSessionServiceStub(channel)
        request = device_sessions_pb2.BatchUploadRequest(sessions=[session, session])
        answer = await stub.BatchUpload(request, metadata=phone.metadata)
        assert [(one.client_session_id, one.status, one.session_id) for one in answer.results] == [
            (session.client_session_id, "created", session.client_session_id),
            (session.client_session_id, "duplicate", session.client_session_id),
        ]
        assert (answer.created, answer.duplicates, answer.failed) == (1, 1, 0)
        assert answer.server_time.seconds > 0
        stats = await stats_pb2_grpc.StatsServiceStub(channel).GetStats(
            stats_pb2.GetStatsRequest(), metadata=phone.metadata
        )
        assert (stats.total_sessions, stats.total_xp, stats.total_duration_seconds) == (1, 50, 1800)

    async def test_the_same_recording_in_json_is_the_same(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        session = device_session()
        stub = device_sessions_pb2_grpc.DeviceSessionServiceStub(channel)
        request = device_sessions_pb2.BatchUploadRequest(sessions=[recording(**session)])
        assert (await stub.BatchUpload(request, metadata=phone.metadata)).created == 1
        answer = await phone.call("POST", "/sessions/batch_upload", json={"sessions": [session]})
        assert answer.json()["duplicates"] == 1

    async def test_a_puzzle_with_every_field_comes_back_as_it_was_sent(
        self, channel: grpc.aio.Channel, phone: Phone
    ) -> None:
        session = puzzle()
        assert len(session.ListFields()) == len(session.DESCRIPTOR.fields)
        stub = puzzle_sessions_pb2_grpc.PuzzleSessionServiceStub(channel)
        request = puzzle_sessions_pb2.UploadPuzzleSessionsRequest(sessions=[session])
        assert (await stub.UploadPuzzleSessions(request, metadata=phone.metadata)).synced == 1
        listed = await stub.ListPuzzleSessions(puzzle_sessions_pb2.ListPuzzleSessionsRequest(), metadata=phone.metadata)
        assert (list(listed.sessions), listed.total) == ([session], 1)

    @pytest.mark.parametrize("seconds", OUT_OF_TIME)
    @pytest.mark.parametrize("name", ["started_at", "ended_at"])
    async def test_a_timestamp_out_of_range_fails_its_item_alone(
        self, channel: grpc.aio.Channel, phone: Phone, name: str, seconds: int
    ) -> None:
        bad, good = recording(), recording()
        getattr(bad, name).CopyFrom(Timestamp(seconds=seconds))
        stub = device_sessions_pb2_grpc.DeviceSessionServiceStub(channel)
        request = device_sessions_pb2.BatchUploadRequest(sessions=[bad, good])
        answer = await stub.BatchUpload(request, metadata=phone.metadata)
        assert [one.status for one in answer.results] == ["error", "created"]
        assert answer.results[0].error.field == f"sessions[0].{name}"
        assert answer.results[0].client_session_id == bad.client_session_id, "the phone looks for it by its id"

    @pytest.mark.parametrize("seconds", OUT_OF_TIME)
    async def test_a_puzzle_out_of_time_is_rejected_under_its_id(
        self, channel: grpc.aio.Channel, phone: Phone, seconds: int
    ) -> None:
        bad, good = puzzle(), puzzle()
        bad.timestamp.CopyFrom(Timestamp(seconds=seconds))
        stub = puzzle_sessions_pb2_grpc.PuzzleSessionServiceStub(channel)
        request = puzzle_sessions_pb2.UploadPuzzleSessionsRequest(sessions=[bad, good])
        answer = await stub.UploadPuzzleSessions(request, metadata=phone.metadata)
        assert answer.synced == 1
        assert [(one.field, one.id) for one in answer.rejected] == [("sessions[0].timestamp", bad.id)]

    @pytest.mark.parametrize("nanos", [-1, 2**31 - 1, -(2**31)])
    async def test_impossible_nanoseconds_fail_their_item_alone(
        self, channel: grpc.aio.Channel, phone: Phone, nanos: int
    ) -> None:
        bad, good = recording(), recording()
        bad.started_at.nanos = nanos
        stub = device_sessions_pb2_grpc.DeviceSessionServiceStub(channel)
        request = device_sessions_pb2.BatchUploadRequest(sessions=[bad, good])
        answer = await stub.BatchUpload(request, metadata=phone.metadata)
        assert [one.status for one in answer.results] == ["error", "created"]

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    @pytest.mark.parametrize("name", ["total_distance_meters", "device_metrics", "samples"])
    async def test_what_is_no_number_fails_its_item_and_is_never_kept_as_null(
        self, channel: grpc.aio.Channel, phone: Phone, name: str, number: float
    ) -> None:
        bad, good = recording(), recording()
        if name == "device_metrics":
            bad.device_metrics.update({"a": number})
        elif name == "samples":
            bad.samples.extend([number])
        else:
            setattr(bad, name, number)
        stub = device_sessions_pb2_grpc.DeviceSessionServiceStub(channel)
        request = device_sessions_pb2.BatchUploadRequest(sessions=[bad, good])
        answer = await stub.BatchUpload(request, metadata=phone.metadata)
        assert [one.status for one in answer.results] == ["error", "created"]
        assert answer.results[0].error.field == f"sessions[0].{name}"

    async def test_no_items_and_too_many_name_sessions(self, channel: grpc.aio.Channel, phone: Phone) -> None:
        devices = device_sessions_pb2_grpc.DeviceSessionServiceStub(channel)
        puzzles = puzzle_sessions_pb2_grpc.PuzzleSessionServiceStub(channel)
        for count, reason, violation in ((0, "FIELD_MISSING", "REQUIRED"), (1001, "FIELD_INVALID", "TOO_MANY")):
            for call in (
                devices.BatchUpload(
                    device_sessions_pb2.BatchUploadRequest(sessions=[recording()] * count), metadata=phone.metadata
                ),
                puzzles.UploadPuzzleSessions(
                    puzzle_sessions_pb2.UploadPuzzleSessionsRequest(sessions=[puzzle()] * count),
                    metadata=phone.metadata,
                ),
            ):
                refusal = await refused(call)
                assert (refusal.reason, refusal.fields) == (reason, [("sessions", violation)])


class TestInfrastructure:
    async def test_reflection_lists_every_service_of_the_contract(self, channel: grpc.aio.Channel) -> None:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = [one async for one in stub.ServerReflectionInfo(iter([request]))]
        listed = {one.name for one in answers[0].list_services_response.service}
        assert {service.full_name for service in contract.services()} <= listed
        assert "grpc.health.v1.Health" in listed

    async def test_reflection_describes_every_service(self, channel: grpc.aio.Channel) -> None:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=service.full_name)
            for service in contract.services()
        ]
        answers = [one async for one in stub.ServerReflectionInfo(iter(requests))]
        assert len(answers) == len(requests)
        assert all(one.file_descriptor_response.file_descriptor_proto for one in answers)

    @pytest.mark.parametrize("service", ["", *(one.full_name for one in contract.services())])
    async def test_the_health_of_every_service_can_be_asked(self, channel: grpc.aio.Channel, service: str) -> None:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    async def test_the_health_of_an_unknown_service_is_not_found(self, channel: grpc.aio.Channel) -> None:
        stub = health_pb2_grpc.HealthStub(channel)
        refusal = await refused(stub.Check(health_pb2.HealthCheckRequest(service="nope")))
        assert refusal.code == grpc.StatusCode.NOT_FOUND


def frames(body: bytes) -> list[tuple[int, bytes]]:
    """The frames of a gRPC-Web body: flag and content."""
    found = []
    while body:
        length = int.from_bytes(body[1:5])
        found.append((body[0], body[5 : 5 + length]))
        body = body[5 + length :]
    return found


class TestGrpcWeb:
    async def web(self, edge: Edge, method: str, message: bytes, **headers: str) -> list[tuple[int, bytes]]:
        answer = await edge.http.post(
            method,
            content=b"\0" + len(message).to_bytes(4) + message,
            headers={"content-type": "application/grpc-web+proto", "x-grpc-web": "1", **headers},
        )
        assert answer.http_version == "HTTP/1.1"
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/grpc-web+proto"
        if "grpc-status" in answer.headers:
            return [(0x80, f"grpc-status:{answer.headers['grpc-status']}".encode())]
        return frames(answer.content)

    async def test_a_unary_call_over_http_1(self, edge: Edge, phone: Phone) -> None:
        request = auth_pb2.SignInRequest(email=phone.email, password=PASSWORD)
        (kind, message), (last, trailers) = await self.web(edge, SIGN_IN, request.SerializeToString())
        assert (kind, last) == (0, 0x80)
        assert auth_pb2.SignInResponse.FromString(message).user.id == phone.user_id
        assert b"grpc-status:0" in trailers.replace(b" ", b"")

    async def test_a_call_with_a_token(self, edge: Edge, phone: Phone) -> None:
        method = "/satchel.auth.v1.AuthService/GetMe"
        (_, message), _ = await self.web(edge, method, b"", authorization=f"Bearer {phone.access_token}")
        assert auth_pb2.GetMeResponse.FromString(message).id == phone.user_id

    async def test_a_refusal_is_in_the_trailers(self, edge: Edge) -> None:
        *messages, (kind, trailers) = await self.web(edge, SIGN_OUT, b"")
        assert (messages, kind) == ([], 0x80)
        assert b"grpc-status:16" in trailers.replace(b" ", b"")


async def ran(*command: str) -> str:
    """What a command writes; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT
    )
    try:
        async with asyncio.timeout(30):
            out, error = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, error.decode()
    return out.decode()


class TestCommandLines:
    """With nothing but the edge's address: reflection says the rest."""

    @pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not on PATH")
    async def test_grpcurl_lists_describes_and_calls(self, edge: Edge) -> None:
        listed = (await ran("grpcurl", "-plaintext", edge.target, "list")).split()
        assert {service.full_name for service in contract.services()} <= {*listed}
        described = await ran("grpcurl", "-plaintext", edge.target, "describe", "satchel.auth.v1.AuthService")
        assert "rpc GetJwks" in described
        answer = await ran("grpcurl", "-plaintext", edge.target, "satchel.auth.v1.AuthService/GetJwks")
        assert json.loads(answer)["keys"][0]["kty"] == "EC"

    @pytest.mark.skipif(not BUF.exists(), reason="buf is not installed")
    async def test_buf_curl_lists_and_calls(self, edge: Edge, phone: Phone) -> None:
        curl = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect"]
        listed = (await ran(*curl, "--list-methods", edge.url)).split()
        expected = {
            f"{service.full_name}/{method.name}" for service in contract.services() for method in service.methods
        }
        assert expected <= {*listed}
        answer = await ran(*curl, f"{edge.url}/satchel.auth.v1.AuthService/GetJwks")
        assert json.loads(answer)["keys"][0]["kty"] == "EC"
        header = f"Authorization: Bearer {phone.access_token}"
        answer = await ran(*curl, "--header", header, f"{edge.url}/satchel.auth.v1.AuthService/GetMe")
        assert json.loads(answer)["id"] == phone.user_id
