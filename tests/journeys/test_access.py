"""Who may call what: every rpc of the contract with every kind of caller, over gRPC and over REST."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import jwt
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from satchel.options.v1 import options_pb2 as options

from runtime import contract
from runtime.call import Principal
from runtime.contract import HttpRule, Policy
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret, signing_keys
from services.auth.tokens import AccessTokens
from tests.conftest import Edge
from tests.factories import PASSWORD, Phone, change, device_session, exercise_session, filled, puzzle_session

OURS = {
    policy.method: policy for policy in contract.policies().values() if policy.service not in contract.INFRASTRUCTURE
}
DESCRIPTORS = {
    f"/{service.full_name}/{method.name}": method for service in contract.services() for method in service.methods
}
CALLERS = ("nobody", "garbage", "expired", "signed out", "user", "admin", "service")

OPEN = dict.fromkeys(CALLERS, "")
USERS = {
    "nobody": "MISSING_BEARER_TOKEN",
    "garbage": "INVALID_TOKEN",
    "expired": "TOKEN_EXPIRED",
    "signed out": "TOKEN_REVOKED",
    "user": "",
    "admin": "",
    "service": "FORBIDDEN",
}
ADMINS = {**USERS, "user": "FORBIDDEN"}
SERVICES = {**USERS, "user": "FORBIDDEN", "admin": "FORBIDDEN", "service": ""}
OPERATORS = {**USERS, "user": "FORBIDDEN", "service": ""}
# Open to all who have a token; who may do it to whom is the rpc's to say.
OWNERS = {**USERS, "service": ""}
# Open to whoever has a signed link, which these callers have not.
LINKED = {**USERS}

# Open to whoever has no token; a guest's makes a difference, so one that is sent must be good.
GUESTS = {**USERS, "nobody": ""}

# The reason that each kind of caller is refused with; empty: the caller is let in. A new rpc is added here by hand.
EXPECTED = {
    "/satchel.auth.v1.AuthService/SignUp": GUESTS,
    "/satchel.auth.v1.AuthService/SignIn": OPEN,
    "/satchel.auth.v1.AuthService/Refresh": OPEN,
    "/satchel.auth.v1.AuthService/SignOut": USERS,
    "/satchel.auth.v1.AuthService/GetMe": USERS,
    "/satchel.auth.v1.AuthService/GetSubscriptionStatus": USERS,
    "/satchel.auth.v1.AuthService/GetJwks": OPEN,
    "/satchel.auth.v1.AuthService/ListRevokedSignIns": SERVICES,
    "/satchel.auth.v1.SsoService/SignInWithProvider": GUESTS,
    "/satchel.auth.v1.SsoService/ListIdentities": USERS,
    "/satchel.auth.v1.SsoService/LinkIdentity": USERS,
    "/satchel.auth.v1.SsoService/UnlinkIdentity": USERS,
    "/satchel.auth.v1.PasswordService/RequestPasswordReset": OPEN,
    "/satchel.auth.v1.PasswordService/ResetPassword": OPEN,
    "/satchel.auth.v1.PasswordService/ChangePassword": USERS,
    "/satchel.auth.v1.EmailService/RequestEmailVerification": USERS,
    "/satchel.auth.v1.EmailService/ChangeEmail": USERS,
    "/satchel.auth.v1.EmailService/VerifyEmail": USERS,
    "/satchel.auth.v1.UserService/CreateUser": OPERATORS,
    "/satchel.auth.v1.UserService/GetUser": OWNERS,
    "/satchel.auth.v1.UserService/FindUser": OPERATORS,
    "/satchel.auth.v1.GarminCredentialService/CreateGarminCredentials": SERVICES,
    "/satchel.auth.v1.GarminCredentialService/UpdateGarminCredentials": SERVICES,
    "/satchel.auth.v1.GarminCredentialService/GetGarminCredentials": SERVICES,
    "/satchel.auth.v1.GarminCredentialService/DeleteGarminCredentials": SERVICES,
    "/satchel.auth.v1.ApplicationTokenService/CreateApplicationToken": OWNERS,
    "/satchel.auth.v1.ApplicationTokenService/UpdateApplicationToken": OWNERS,
    "/satchel.auth.v1.ApplicationTokenService/ListApplicationTokens": OWNERS,
    "/satchel.auth.v1.ApplicationTokenService/ResolveApplicationTokens": SERVICES,
    "/satchel.auth.v1.TokenExchangeService/ExchangeToken": SERVICES,
    "/satchel.sessions.v1.ExerciseSessionService/CreateExerciseSession": USERS,
    "/satchel.sessions.v1.ExerciseSessionService/GetExerciseSession": USERS,
    "/satchel.sessions.v1.ExerciseSessionService/ListExerciseSessions": USERS,
    "/satchel.sessions.v1.PuzzleSessionService/UploadPuzzleSessions": USERS,
    "/satchel.sessions.v1.PuzzleSessionService/UploadPuzzleSessionsJson": USERS,
    "/satchel.sessions.v1.PuzzleSessionService/ListPuzzleSessions": USERS,
    "/satchel.sessions.v1.DeviceSessionService/BatchUpload": USERS,
    "/satchel.sessions.v1.DeviceSessionService/BatchUploadJson": USERS,
    "/satchel.sessions.v1.StatsService/GetStats": USERS,
    "/satchel.sessions.v1.StatsService/UpdateStats": USERS,
    "/satchel.sessions.v1.SyncService/Sync": USERS,
    "/satchel.sessions.v1.SyncService/PushChanges": USERS,
    "/satchel.sessions.v1.SyncService/PushChangesJson": USERS,
    "/satchel.sessions.v1.SyncService/PullChanges": USERS,
    "/satchel.sessions.v1.SyncService/PullChangesJson": USERS,
    "/satchel.sessions.v1.SyncService/GetPolicy": USERS,
    "/satchel.sessions.v1.SyncService/UpdatePolicy": ADMINS,
    "/satchel.sessions.v1.SyncService/ListConflicts": USERS,
    "/satchel.sessions.v1.SyncService/ResolveConflict": USERS,
    "/satchel.sessions.v1.MetaService/ListSchemas": OPEN,
    "/satchel.sessions.v1.MetaService/GetSchema": OPEN,
    "/satchel.sessions.v1.MetaService/GetAppVersion": OPEN,
    "/satchel.sessions.v1.MetaService/UpdateAppVersion": ADMINS,
    "/satchel.sessions.v1.HealthMetricService/CreateHealthMetrics": USERS,
    "/satchel.sessions.v1.HealthMetricService/CreateHealthMetricsJson": USERS,
    "/satchel.sessions.v1.HealthMetricService/ListHealthMetrics": USERS,
    "/satchel.sessions.v1.WorkoutPlanService/CreateWorkoutPlan": USERS,
    "/satchel.sessions.v1.WorkoutPlanService/GetWorkoutPlan": USERS,
    "/satchel.auth.v1.AuthService/DeleteMe": USERS,
    "/satchel.auth.v1.DeviceService/ListDevices": USERS,
    "/satchel.auth.v1.DeviceService/DeleteDevice": USERS,
    "/satchel.auth.v1.SecurityEventService/ListSecurityEvents": USERS,
    "/satchel.auth.v1.SecurityEventService/ListTenantSecurityEvents": ADMINS,
    "/satchel.sessions.v1.SyncService/ExportRecords": USERS,
    "/satchel.sessions.v1.SyncService/EraseUser": SERVICES,
    "/satchel.sessions.v1.SyncService/StoreRecords": SERVICES,
    "/satchel.uploads.v1.UploadService/GetUploadLimits": USERS,
    "/satchel.uploads.v1.UploadService/InitUpload": USERS,
    "/satchel.uploads.v1.UploadService/UploadChunk": USERS,
    "/satchel.uploads.v1.UploadService/UploadChunks": USERS,
    "/satchel.uploads.v1.UploadService/UploadContent": USERS,
    "/satchel.uploads.v1.UploadService/GetUploadStatus": USERS,
    "/satchel.uploads.v1.UploadService/FinalizeUpload": USERS,
    "/satchel.uploads.v1.UploadService/CancelUpload": USERS,
    "/satchel.uploads.v1.UploadService/GetFile": LINKED,
    "/satchel.uploads.v1.UploadService/HeadFile": LINKED,
    "/satchel.uploads.v1.UploadService/CreateSignedUrl": USERS,
    "/satchel.uploads.v1.UploadService/ListFiles": USERS,
    "/satchel.uploads.v1.UploadService/DeleteFile": USERS,
    "/satchel.uploads.v1.UploadService/AddActivity": USERS,
    "/satchel.uploads.v1.UploadService/EraseUserFiles": SERVICES,
    "/satchel.health.v1.HealthService/CheckMesh": OPEN,
    "/satchel.auth.v1.SubscriptionService/ReceiveEvent": OPEN,
    "/satchel.auth.v1.SubscriptionService/ReceiveRevenueCatEvent": OPEN,
    "/satchel.auth.v1.SecondFactorService/GetSecondFactor": USERS,
    "/satchel.auth.v1.SecondFactorService/BeginSecondFactor": USERS,
    "/satchel.auth.v1.SecondFactorService/ConfirmSecondFactor": USERS,
    "/satchel.auth.v1.SecondFactorService/DisableSecondFactor": USERS,
    "/satchel.auth.v1.SecondFactorService/CreateRecoveryCodes": USERS,
    "/satchel.auth.v1.GuestService/CreateGuest": OPEN,
    "/satchel.auth.v1.GuestService/MergeGuest": USERS,
    "/satchel.auth.v1.DeletionService/GetDeletion": OPEN,
    "/satchel.auth.v1.ExportService/ExportAccount": USERS,
    "/satchel.sessions.v1.SyncService/AdoptRecords": SERVICES,
    "/satchel.uploads.v1.UploadService/AdoptFiles": SERVICES,
    "/satchel.garmin.v1.GarminService/LinkAccount": USERS,
    "/satchel.garmin.v1.GarminService/VerifyMfa": USERS,
    "/satchel.garmin.v1.GarminService/GetLink": USERS,
    "/satchel.garmin.v1.GarminService/UnlinkAccount": USERS,
    "/satchel.garmin.v1.GarminService/SyncActivities": USERS,
    "/satchel.garmin.v1.GarminService/SyncHealth": USERS,
    "/satchel.garmin.v1.GarminService/SyncWorkouts": USERS,
    "/satchel.garmin.v1.GarminService/GetSyncStatus": USERS,
    "/satchel.garmin.v1.GarminService/CancelSync": USERS,
    "/satchel.garmin.v1.GarminService/ListSyncs": USERS,
    "/satchel.garmin.v1.GarminService/UpdateSchedule": USERS,
    "/satchel.garmin.v1.GarminService/EraseUserLink": SERVICES,
}
ACCESS = {
    options.ACCESS_PUBLIC: (OPEN,),
    options.ACCESS_OPTIONAL: (LINKED, GUESTS),
    options.ACCESS_USER: (USERS,),
    options.ACCESS_ADMIN: (ADMINS,),
    options.ACCESS_SERVICE: (SERVICES,),
    options.ACCESS_OPERATOR: (OPERATORS,),
    options.ACCESS_OWNER: (OWNERS,),
}
# What the published API gives services a REST door to.
SERVICE_DOORS = ("/garmin_credentials/{user_id}", "/v1/auth/token")

STATUS = {
    "MISSING_BEARER_TOKEN": (grpc.StatusCode.UNAUTHENTICATED, 401),
    "INVALID_TOKEN": (grpc.StatusCode.UNAUTHENTICATED, 401),
    "TOKEN_EXPIRED": (grpc.StatusCode.UNAUTHENTICATED, 401),
    "TOKEN_REVOKED": (grpc.StatusCode.UNAUTHENTICATED, 401),
    "FORBIDDEN": (grpc.StatusCode.PERMISSION_DENIED, 403),
}
CODES = {
    (401, options.DIALECT_CORE): "AUTH_UNAUTHORIZED",
    (401, options.DIALECT_FLOW): "UNAUTHORIZED",
    (401, options.DIALECT_MOBILE): "AUTH_001",
    (403, options.DIALECT_CORE): "AUTH_FORBIDDEN",
    (403, options.DIALECT_FLOW): "FORBIDDEN",
    (403, options.DIALECT_MOBILE): "AUTH_FORBIDDEN",
}


def request_for(method: str) -> Message:
    """A request that a caller who is let in could send."""
    request: Message = GetMessageClass(DESCRIPTORS[method].input_type)()
    content: dict[str, Any] = {
        "SignUp": {"email": f"{uuid4().hex}@example.com", "password": PASSWORD},
        "CreateExerciseSession": exercise_session(),
        "GetExerciseSession": {"id": str(uuid4())},
        "UploadPuzzleSessions": {"sessions": [puzzle_session()]},
        "BatchUpload": {"sessions": [device_session()]},
        "UpdateStats": {"total_xp": 1},
        "UpdateAppVersion": {"platform": "access", "latest_version": "2.0", "min_supported_version": "1.0"},
        "GetAppVersion": {"platform": "nowhere"},
        "GetSchema": {"domain": "bike"},
        "CreateHealthMetrics": {"health_metrics": [{"type": "mood", "value": 4}]},
        "CreateWorkoutPlan": {"name": "4 x 4", "steps": [{"type": "interval"}]},
        "GetWorkoutPlan": {"workout_id": str(uuid4())},
        "SignOut": {"scope": "others"},
        "DeleteDevice": {"id": str(uuid4())},
        "PushChanges": {"changes": [change(data='{"text": "x"}')]},
        "GetPolicy": {"tenant_id": 1, "domain": "journal"},
        "UpdatePolicy": {
            "tenant_id": 1,
            "domain": "journal",
            "resolution_policy": "client_wins",
            "validate_only": True,
        },
        "ResolveConflict": {"conflict_id": str(uuid4()), "resolution": "accept_server"},
        "InitUpload": {
            "filename": "a.txt",
            "total_size": 1,
            "mime_type": "text/plain",
            "file_hash": "ab" * 32,
        },
        "UploadChunk": {"upload_id": str(uuid4()), "checksum": "ab" * 32},
        **{
            name: {"upload_id": str(uuid4())}
            for name in ("UploadChunks", "UploadContent", "GetUploadStatus", "FinalizeUpload", "CancelUpload")
        },
        **{name: {"file_id": str(uuid4())} for name in ("CreateSignedUrl", "DeleteFile")},
        **{name: {"name": f"{uuid4()}.txt"} for name in ("GetFile", "HeadFile")},
        "GetDeletion": {"receipt_id": "del_x"},
        **{
            name: {"guest_id": str(uuid4()), "user_id": str(uuid4()), "tenant_id": 1}
            for name in ("AdoptRecords", "AdoptFiles")
        },
        **{name: {"user_id": str(uuid4())} for name in ("EraseUserFiles", "EraseUserLink")},
        "CreateUser": {"email": f"{uuid4().hex}@example.com"},
        "FindUser": {"email": "nobody@example.com"},
        "CreateApplicationToken": {"name": "a script", "scopes": ["read"]},
        "CreateGarminCredentials": {"user_id": str(uuid4()), "garmin_username": "nobody"},
        "UpdateGarminCredentials": {"user_id": str(uuid4()), "garmin_username": "nobody"},
        **{
            name: {"user_id": str(uuid4())}
            for name in ("GetUser", "GetGarminCredentials", "DeleteGarminCredentials", "ListApplicationTokens")
        },
        "UpdateApplicationToken": {"user_id": str(uuid4()), "revoke": True},
    }.get(method.rpartition("/")[2], {})
    return json_format.ParseDict(content, request)


# What a caller who was let in may be told, for requests about nothing.
LET_IN = {
    *("", "FIELD_MISSING", "SESSION_NOT_FOUND", "NOT_FOUND", "UPLOAD_NOT_FOUND", "MALFORMED_REQUEST", "TIER_LIMIT"),
}


@dataclass(frozen=True)
class Callers:
    """The Authorization header of each kind of caller; empty: none."""

    headers: dict[str, str]
    minted: Callable[[Phone, str], str]

    async def header(self, edge: Edge, method: str, caller: str) -> str:
        """The header for a call of an rpc; who deletes an account has one that nobody else needs."""
        if method.endswith("/DeleteMe") and caller in ("user", "admin"):
            return self.minted(await edge.phone(), caller)
        return self.headers[caller]


@pytest.fixture(scope="module")
async def callers(edge: Edge) -> Callers:
    user, leaver = await edge.phone(), await edge.phone()
    keys = signing_keys(edge.mesh.config.keys)

    def minted(phone: Phone, role: Any, *, ago: float = 0) -> str:
        claims = jwt.decode(phone.access_token, options={"verify_signature": False})
        principal = Principal(
            user_id=UUID(claims["sub"]), sign_in_id=UUID(claims["sid"]), tenant_id=1, role=role, tier="free"
        )
        return "Bearer " + AccessTokens(keys, clock=lambda: time.time() - ago).mint(principal)

    assert (await leaver.call("POST", "/v1/auth/signout", json={})).status_code == 200
    await until_revoked_everywhere(leaver)
    return Callers(
        {
            "nobody": "",
            "garbage": "Bearer garbage",
            "expired": minted(user, "user", ago=2 * 3600),
            "signed out": f"Bearer {leaver.access_token}",
            "user": f"Bearer {user.access_token}",
            "admin": minted(user, "admin"),
            "service": "Bearer " + ServiceTokens(mesh_secret(edge.mesh.config.keys), "test").current(),
        },
        minted,
    )


async def until_revoked_everywhere(phone: Phone) -> None:
    deadline = time.monotonic() + 5
    waiting = ["/v1/auth/me", "/users/me/stats", "/api/v1/uploads/limits"]
    while waiting and time.monotonic() < deadline:
        waiting = [path for path in waiting if (await phone.call("GET", path)).status_code == 200]
    assert not waiting, f"a token of an ended sign-in still opens {waiting}"


@pytest.fixture(scope="module")
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(edge.target) as opened:
        yield opened


async def asked(
    channel: grpc.aio.Channel, method: str, request: Message, metadata: Any, *, again: int = 5
) -> tuple[Any, str]:
    """The answer, of a stream all of it, and the reason of the refusal; one of them is empty."""
    descriptor = DESCRIPTORS[method]
    shapes = type(request).SerializeToString, GetMessageClass(descriptor.output_type).FromString
    try:
        if descriptor.client_streaming:
            stream = channel.stream_stream(method, *shapes)(iter([request]), metadata=metadata, timeout=10)
            return [answer async for answer in stream], ""
        if descriptor.server_streaming:
            answers = channel.unary_stream(method, *shapes)(request, metadata=metadata, timeout=10)
            return [answer async for answer in answers], ""
        return await channel.unary_unary(method, *shapes)(request, metadata=metadata, timeout=10), ""
    except grpc.aio.AioRpcError as error:
        status = rpc_status.from_call(error)
        if status is None and descriptor.client_streaming and error.code() is grpc.StatusCode.INTERNAL and again:
            # Where the refusal comes before the request has left, grpc tells of the write and forgets the refusal.
            return await asked(channel, method, request, metadata, again=again - 1)
        assert status is not None, f"{method}: {error.code()} without details: {error.details()}"
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        if info.reason in STATUS:
            assert error.code() == STATUS[info.reason][0]
        return None, info.reason


class TestEveryRpc:
    def test_every_rpc_of_the_contract_is_expected_here(self) -> None:
        assert EXPECTED.keys() == OURS.keys() == DESCRIPTORS.keys()

    @pytest.mark.parametrize("method", EXPECTED)
    def test_what_is_expected_is_what_the_contract_says(self, method: str) -> None:
        assert any(EXPECTED[method] is one for one in ACCESS[OURS[method].access])

    @pytest.mark.parametrize("caller", CALLERS)
    @pytest.mark.parametrize("method", EXPECTED)
    async def test_over_grpc(
        self, edge: Edge, channel: grpc.aio.Channel, callers: Callers, method: str, caller: str
    ) -> None:
        header = await callers.header(edge, method, caller)
        metadata = (("authorization", header),) if header else ()
        answer, reason = await asked(channel, method, request_for(method), metadata)
        expected = EXPECTED[method][caller]
        if expected:
            assert (answer, reason) == (None, expected)
        elif method.endswith("/AddActivity"):
            assert reason == "FORBIDDEN"  # the user that the request names is nobody
        elif EXPECTED[method] is OWNERS and getattr(request_for(method), "user_id", "") and caller == "user":
            assert reason == "FORBIDDEN"  # so is this one
        else:
            assert reason in LET_IN

    @pytest.mark.parametrize("caller", CALLERS)
    @pytest.mark.parametrize(
        ("policy", "rule"),
        [(policy, rule) for policy in OURS.values() for rule in policy.http],
        ids=lambda value: value.path if isinstance(value, HttpRule) else value.method.rpartition("/")[2],
    )
    async def test_over_rest(self, edge: Edge, callers: Callers, policy: Policy, rule: HttpRule, caller: str) -> None:
        header = await callers.header(edge, policy.method, caller)
        headers = {"authorization": header} if header else {}
        reads = rule.verb in ("GET", "HEAD")
        content = None if reads else json_format.MessageToJson(request_for(policy.method))
        answer = await edge.http.request(rule.verb, filled(rule.path), headers=headers, content=content)
        expected = EXPECTED[policy.method][caller]
        if not expected:
            assert answer.status_code in (200, 201, 400, 403, 404), answer.text
            if answer.status_code == 403 and "{user_id}" not in rule.path:  # the user that is filled in is nobody
                assert "free tier" in answer.json()["error"]["message"]
            return
        status = STATUS[expected][1]
        assert answer.status_code == status, answer.text
        if rule.verb == "HEAD":
            assert answer.content == b""
            return
        if policy.dialect == options.DIALECT_DETAIL:
            assert answer.json().keys() == {"detail"}
            return
        error = answer.json()["error"]
        code = CODES[status, policy.dialect]
        assert error["code"] == ("AUTH_002" if (expected, code) == ("TOKEN_EXPIRED", "AUTH_001") else code)
        if status == 401:
            assert error["details"] == [{"field": "Authorization", "reason": expected}]

    async def test_what_only_services_call_has_no_rest_door(self, edge: Edge, callers: Callers) -> None:
        for method, policy in OURS.items():
            if policy.access != options.ACCESS_SERVICE:
                continue
            if policy.http:
                assert {rule.path for rule in policy.http} <= set(SERVICE_DOORS)
                continue
            headers = {"authorization": callers.headers["service"]}
            answer = await edge.http.post(method, json={}, headers=headers)
            assert answer.status_code == 404


class TestFiles:
    """Uploads and files of one user are nothing to another, by whatever door."""

    async def test_what_names_an_upload_refuses_everybody_else(
        self, edge: Edge, channel: grpc.aio.Channel, callers: Callers
    ) -> None:
        owner, other = await edge.phone(), await edge.phone()
        asked_for = {"filename": "a.txt", "total_size": 3, "mime_type": "text/plain", "file_hash": "ab" * 32}
        upload_id = (await owner.call("POST", "/api/v1/uploads/init", json=asked_for)).json()["upload_id"]
        named = [
            policy for policy in OURS.values() if "upload_id" in DESCRIPTORS[policy.method].input_type.fields_by_name
        ]
        assert len(named) == 6
        for policy in named:
            request = json_format.ParseDict(
                {"upload_id": upload_id}, GetMessageClass(DESCRIPTORS[policy.method].input_type)()
            )
            assert (await asked(channel, policy.method, request, other.metadata))[1] == "UPLOAD_FORBIDDEN"
            for rule in policy.http:
                for header in (f"Bearer {other.access_token}", callers.headers["admin"]):
                    path = filled(rule.path, upload_id=upload_id)
                    answer = await edge.http.request(rule.verb, path, headers={"authorization": header})
                    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "UPLOAD_001"), rule
        status = await owner.call("GET", f"/api/v1/uploads/{upload_id}/status")
        assert status.json()["status"] == "active"

    async def test_the_same_file_of_two_phones_is_two_files(self, edge: Edge) -> None:
        a, b = await edge.phone(), await edge.phone()
        asked_for = {"filename": "a.txt", "total_size": 3, "mime_type": "text/plain", "file_hash": "ab" * 32}
        begun = [(await phone.call("POST", "/api/v1/uploads/init", json=asked_for)).json() for phone in (a, b, a)]
        assert begun[0]["upload_id"] == begun[2]["upload_id"] != begun[1]["upload_id"]


class TestTwoUsers:
    """What one user has is nothing to the other, even under the same ids and keys."""

    async def test_the_same_ids_of_two_phones_are_two_recordings(self, edge: Edge) -> None:
        a, b = await edge.phone(), await edge.phone()
        session = device_session(xp_earned=50)
        for phone, earned in ((a, 50), (b, 7)):
            answer = await phone.call(
                "POST", "/sessions/batch_upload", json={"sessions": [{**session, "xp_earned": earned}]}
            )
            assert answer.json()["created"] == 1
        totals = [(await phone.call("GET", "/users/me/stats")).json()["total_xp"] for phone in (a, b)]
        assert totals == [50, 7]

    async def test_the_same_ids_of_two_phones_are_two_puzzles(self, edge: Edge) -> None:
        a, b = await edge.phone(), await edge.phone()
        session = puzzle_session()
        for phone, duration in ((a, 1), (b, 2), (a, 3)):
            answer = await phone.call("POST", "/v1/sessions", json={"sessions": [{**session, "duration": duration}]})
            assert answer.json() == {"synced": 1, "conflicts": 0, "rejected": []}
        for phone, duration in ((a, 3), (b, 2)):
            listed = (await phone.call("GET", "/v1/sessions")).json()
            assert ([one["duration"] for one in listed["sessions"]], listed["total"]) == ([duration], 1)

    async def test_the_same_ids_of_two_phones_are_two_exercise_sessions(self, edge: Edge) -> None:
        a, b = await edge.phone(), await edge.phone()
        id = str(uuid4())
        for phone, duration in ((a, 10), (b, 20)):
            answer = await phone.call("POST", "/sessions", json=exercise_session(id=id, duration=duration))
            assert (answer.status_code, answer.json()["id"]) == (201, id)
        for phone, duration in ((a, 10), (b, 20)):
            assert (await phone.call("GET", f"/sessions/{id}")).json()["duration"] == duration
            listed = (await phone.call("GET", "/sessions")).json()["sessions"]
            assert [one["duration"] for one in listed] == [duration]

    async def test_somebody_elses_session_is_forbidden_over_grpc_too(
        self, edge: Edge, channel: grpc.aio.Channel
    ) -> None:
        a, b = await edge.phone(), await edge.phone()
        id = (await a.call("POST", "/sessions", json=exercise_session())).json()["id"]
        method = "/satchel.sessions.v1.ExerciseSessionService/GetExerciseSession"
        request = json_format.ParseDict({"id": id}, request_for(method))
        assert (await asked(channel, method, request, b.metadata))[1] == "FORBIDDEN"
        assert (await asked(channel, method, request, a.metadata))[0].id == id

    async def test_an_administrator_reads_no_other_users_session(self, edge: Edge, callers: Callers) -> None:
        owner = await edge.phone()
        id = (await owner.call("POST", "/sessions", json=exercise_session())).json()["id"]
        answer = await edge.http.get(f"/sessions/{id}", headers={"authorization": callers.headers["admin"]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "AUTH_FORBIDDEN")

    async def test_the_same_idempotency_key_of_two_phones_is_two_keys(self, edge: Edge) -> None:
        a, b = await edge.phone(), await edge.phone()
        headers = {"idempotency-key": "one-and-the-same"}
        ids = set()
        for phone, duration in ((a, 10), (b, 20)):
            answer = await phone.call("POST", "/sessions", json=exercise_session(duration=duration), headers=headers)
            assert (answer.status_code, answer.json()["duration"]) == (201, duration)
            ids.add(answer.json()["id"])
        assert len(ids) == 2

    async def test_totals_are_each_users_own(self, edge: Edge) -> None:
        a, b = await edge.phone(), await edge.phone()
        before = (await b.call("GET", "/users/me/stats")).json()
        await a.call("PATCH", "/users/me/stats", json={"total_xp": 99, "extra": {"mine": True}})
        await a.call("POST", "/sessions/batch_upload", json={"sessions": [device_session()]})
        await a.call("POST", "/v1/sessions", json={"sessions": [puzzle_session()]})
        await a.call("POST", "/sessions", json=exercise_session())
        assert (await b.call("GET", "/users/me/stats")).json() == before
        for path in ("/sessions", "/v1/sessions"):
            assert (await b.call("GET", path)).json()["sessions"] == []

    async def test_the_free_tier_counts_each_users_puzzles_alone(self, edge: Edge) -> None:
        for phone in (await edge.phone(), await edge.phone()):
            answer = await phone.call("POST", "/v1/sessions", json={"sessions": [puzzle_session()]})
            assert answer.json()["synced"] == 1

    async def test_a_page_token_of_one_user_shows_nothing_of_hers_to_another(self, edge: Edge) -> None:
        a, b = await edge.phone(), await edge.phone()
        for _ in range(3):
            await a.call("POST", "/sessions", json=exercise_session())
        token = (await a.call("GET", "/sessions?pageSize=1")).json()["nextPageToken"]
        assert token
        assert (await b.call("GET", "/sessions", params={"pageToken": token})).json()["sessions"] == []

    async def test_signing_out_everywhere_ends_nobody_elses_sign_in(self, edge: Edge) -> None:
        a, b = await edge.phone(), await edge.phone()
        assert (await a.call("POST", "/v1/auth/signout", json={"scope": "all"})).json() == {"signed_out": 1}
        await until_revoked_everywhere(a)
        assert (await b.call("GET", "/v1/auth/me")).json()["id"] == b.user_id
        answer = await edge.http.post("/v1/auth/refresh", json={"refresh_token": b.refresh_token})
        assert answer.status_code == 200

    async def test_the_account_and_the_subscription_are_the_callers(self, edge: Edge) -> None:
        a, b = await edge.phone(), await edge.phone()
        answers: list[httpx.Response] = [await phone.call("GET", "/v1/auth/me") for phone in (a, b, a)]
        assert [answer.json()["id"] for answer in answers] == [a.user_id, b.user_id, a.user_id]
