"""What bad input comes to: every door, every field, one refusal that names what is wrong, and nothing half-written."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from satchel.auth.v1 import auth_pb2, emails_pb2, guests_pb2, passwords_pb2, second_factors_pb2
from satchel.options.v1 import options_pb2 as options
from satchel.sessions.v1 import device_sessions_pb2, exercise_sessions_pb2, puzzle_sessions_pb2, stats_pb2, sync_pb2
from satchel.uploads.v1 import uploads_pb2

from runtime.call import Principal
from runtime.contract import Policy, policies
from runtime.identity import ISSUER, MESH_AUDIENCE, ServiceTokens
from runtime.keys import mesh_secret, signing_keys
from services.auth.tokens import AccessTokens
from tests.conftest import Edge
from tests.factories import PASSWORD, Phone, change, device_session, exercise_session, filled, puzzle_session

POLICIES = {policy.method.rpartition("/")[2]: policy for policy in policies().values() if policy.http}
INVALID = {
    options.DIALECT_CORE: "VALIDATION_FAILED",
    options.DIALECT_FLOW: "INVALID_REQUEST",
    options.DIALECT_MOBILE: "SYNC_001",
}
MISSING_FIELD = {**INVALID, options.DIALECT_MOBILE: "SYNC_002"}
UNAUTHENTICATED = {
    options.DIALECT_CORE: "AUTH_UNAUTHORIZED",
    options.DIALECT_FLOW: "UNAUTHORIZED",
    options.DIALECT_MOBILE: "AUTH_001",
}
# Words of PostgreSQL, Python, Envoy and protobuf that are none of a caller's business.
INNER_WORDS = re.compile(
    r"psycopg|PostgreSQL|Traceback|\.py\b|TYPE_|googleapis|INVALID_ARGUMENT|Error:|codec|orjson|absl|Proto |transcod"
    r"|Recursion|satchel\.",
)
MIB = 1024 * 1024


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


# Values as JSON text, for much of it no JSON library would write.
NOT_A_STRING = ("7", "-1.5", "true", "{}", '{"a": 1}', "[]", '["a"]', "1" + "0" * 30, "[[[[]]]]")
NOT_A_NUMBER = ('"x"', '""', '"NaN"', '"Infinity"', "true", "{}", "[]", "[1]", '"\\u0000"')
NOT_WHOLE = (*NOT_A_NUMBER, "1.5", "2147483648", "-2147483649", "1" + "0" * 30, "1e40")
NOT_A_BOOL = ('"maybe"', "7", "{}", "[]", '"\\u0000"')
NOT_AN_OBJECT = ('"x"', "7", "true", "[]", "[{}]")
NOT_A_LIST = ('"x"', "7", "true", "{}")
# The transcoder takes these for something that is no JSON at all; a document read by us refuses the item.
NOT_FOR_PROTOBUF = ('"\\ud83d"', "1e400", "-1e400")


def texts(*values: Any) -> tuple[str, ...]:
    return tuple(json.dumps(value) for value in values)


@dataclass(frozen=True)
class Field:
    """What a field refuses, as JSON text."""

    bad: tuple[str, ...]
    required: bool = False


TIMES = texts(
    "", "yesterday", "2026-02-26", "2026-02-30T10:00:00Z", "1970-01-01T00:00:00Z", "2100-01-01T00:00:00Z", "x" * 100_000
)
NUL = texts("a\0b")
KEY = Field((*NOT_A_STRING, *NUL, *texts("k" * 256, "a b", " ", "schlüssel")))


def whole(below: int, above: int, *, required: bool = False) -> Field:
    return Field((*NOT_WHOLE, *texts(below, above)), required)


@dataclass(frozen=True)
class Body:
    """A door whose JSON object the edge reads."""

    good: Callable[[], dict[str, Any]]
    message: Any
    fields: dict[str, Field]
    harmless: frozenset[str] = field(default_factory=frozenset)
    """Fields that this test cannot get wrong."""


ADDRESS = Field(
    (*NOT_A_STRING, *NUL, *texts("x", "a@b", "@example.com", "a b@example.com", "x" * 300 + "@example.com")), True
)
NEW_PASSWORD = Field((*NOT_A_STRING, *texts("short", "x" * 129, "aaaaaaaaaaaa", "password1")), True)

BODIES = {
    "SignUp": Body(
        lambda: {"email": f"{uuid4().hex}@example.com", "password": PASSWORD},
        auth_pb2.SignUpRequest,
        {
            "email": Field(
                (
                    *NOT_A_STRING,
                    *NUL,
                    *texts("x", "a@b", "@example.com", "a b@example.com", "x" * 300 + "@example.com"),
                ),
                True,
            ),
            "password": Field((*NOT_A_STRING, *texts("short", "x" * 129, "aaaaaaaaaaaa", "password1")), True),
            "device_name": Field((*NOT_A_STRING, *NUL, *texts("x" * 101, "a\nb"))),
            "tenant_id": whole(-1, 2**31),
        },
    ),
    "SignIn": Body(
        lambda: {"email": "nobody@example.com", "password": PASSWORD},
        auth_pb2.SignInRequest,
        {
            "email": Field(NOT_A_STRING, True),
            "password": Field(NOT_A_STRING, True),
            "device_name": Field((*NOT_A_STRING, *NUL, *texts("x" * 101))),
            "code": Field(NOT_A_STRING),
        },
    ),
    "Refresh": Body(dict, auth_pb2.RefreshRequest, {"refresh_token": Field(NOT_A_STRING, True)}),
    "CreateGuest": Body(
        dict,
        guests_pb2.CreateGuestRequest,
        {
            "device_name": Field((*NOT_A_STRING, *NUL, *texts("x" * 101, "a\nb"))),
            "tenant_id": whole(-1, 2**31),
        },
    ),
    "MergeGuest": Body(
        dict,
        guests_pb2.MergeGuestRequest,
        {
            "guest_refresh_token": Field((*NOT_A_STRING, *NUL, *texts("rt_", "rt_x", "x" * 10_000)), True),
            "guest_access_token": Field((*NOT_A_STRING, *NUL, *texts("x", "a.b.c", "x" * 10_000))),
        },
    ),
    "SignOut": Body(
        dict, auth_pb2.SignOutRequest, {"scope": Field((*NOT_A_STRING, *NUL, *texts("everything", " ", "x" * 10_000)))}
    ),
    "RequestPasswordReset": Body(
        lambda: {"email": "nobody@example.com"}, passwords_pb2.RequestPasswordResetRequest, {"email": ADDRESS}
    ),
    "ResetPassword": Body(
        lambda: {"email": "nobody@example.com", "code": "0000-0000", "new_password": PASSWORD},
        passwords_pb2.ResetPasswordRequest,
        {"email": ADDRESS, "code": Field(NOT_A_STRING, True), "new_password": NEW_PASSWORD},
    ),
    "ChangePassword": Body(
        lambda: {"current_password": "not the tester's", "new_password": PASSWORD},
        passwords_pb2.ChangePasswordRequest,
        {"current_password": Field(NOT_A_STRING, True), "new_password": NEW_PASSWORD, "code": Field(NOT_A_STRING)},
    ),
    "ChangeEmail": Body(
        lambda: {"new_email": "nobody@example.com", "password": "not the tester's"},
        emails_pb2.ChangeEmailRequest,
        {"new_email": ADDRESS, "password": Field(NOT_A_STRING, True)},
    ),
    "RequestEmailVerification": Body(dict, emails_pb2.RequestEmailVerificationRequest, {}),
    "VerifyEmail": Body(dict, emails_pb2.VerifyEmailRequest, {"code": Field(NOT_A_STRING, True)}),
    "BeginSecondFactor": Body(dict, second_factors_pb2.BeginSecondFactorRequest, {"password": Field(NOT_A_STRING)}),
    "ConfirmSecondFactor": Body(
        lambda: {"code": "000000"},
        second_factors_pb2.ConfirmSecondFactorRequest,
        {"code": Field((*NOT_A_STRING, *NUL), True)},
    ),
    "DisableSecondFactor": Body(
        lambda: {"code": "000000"},
        second_factors_pb2.DisableSecondFactorRequest,
        {"code": Field((*NOT_A_STRING, *NUL), True), "password": Field(NOT_A_STRING)},
    ),
    "CreateRecoveryCodes": Body(
        lambda: {"code": "000000"},
        second_factors_pb2.CreateRecoveryCodesRequest,
        {"code": Field((*NOT_A_STRING, *NUL), True)},
    ),
    "CreateExerciseSession": Body(
        exercise_session,
        exercise_sessions_pb2.CreateExerciseSessionRequest,
        {
            "exerciseId": Field((*NOT_A_STRING, *NUL, *texts("", " ", "x" * 101)), True),
            "startTime": Field((*NOT_A_STRING, *NUL, *TIMES), True),
            "duration": whole(-1, 604_801, required=True),
            "repetitionCount": whole(-1, 1_000_001, required=True),
            "isCompleted": Field(NOT_A_BOOL, True),
            "id": Field((*NOT_A_STRING, *NUL, *texts("7", "not-a-uuid", "x" * 10_000, "g" * 32))),
            "idempotencyKey": KEY,
        },
    ),
    "UpdateStats": Body(
        lambda: {"total_sessions": 1},
        stats_pb2.UpdateStatsRequest,
        {
            "total_sessions": whole(-1, 2**31),
            "total_duration_seconds": Field((*NOT_A_NUMBER, *texts(-1, 1.5, 2**53, 10**30))),
            "total_distance_meters": Field((*NOT_A_NUMBER, *texts(-0.5, 10**30))),
            "total_calories": Field((*NOT_A_NUMBER, *texts(-0.5, 10**30))),
            "total_xp": Field((*NOT_A_NUMBER, *texts(-1, 1.5, 2**53))),
            "current_streak_days": whole(-1, 1_000_001),
            "extra": Field(
                (*NOT_AN_OBJECT, *texts({"a": "\0"}, {"\0": 1}, {"a": "x" * 300_000}), f'{{"a": {nested(32)}}}')
            ),
            "idempotency_key": KEY,
        },
    ),
    "UpdatePolicy": Body(
        lambda: {"resolution_policy": "server_wins"},
        sync_pb2.UpdatePolicyRequest,
        {
            "tenant_id": Field(NOT_WHOLE),
            "domain": Field(NOT_A_STRING),
            "resolution_policy": Field((*NOT_A_STRING, *NUL, *texts("newest", " ", "MANUAL", "x" * 10_000))),
            "auto_resolve": Field(NOT_A_BOOL),
            "notify_on_conflict": Field(NOT_A_BOOL),
            "validate_only": Field(NOT_A_BOOL),
        },
    ),
    "ResolveConflict": Body(
        lambda: {"resolution": "accept_client"},
        sync_pb2.ResolveConflictRequest,
        {
            "conflict_id": Field(NOT_A_STRING),
            "resolution": Field((*NOT_A_STRING, *NUL, *texts("accept", " ", "MERGE", "x" * 10_000)), True),
            "client_data": Field(NOT_AN_OBJECT),
        },
    ),
    "InitUpload": Body(
        lambda: {"filename": "a.txt", "total_size": 3, "mime_type": "text/plain", "file_hash": "ab" * 32},
        uploads_pb2.InitUploadRequest,
        {
            "filename": Field(
                (*NOT_A_STRING, *texts("x" * 256, "/", "a/", "...", " . ", "\0", "\u202e", "..\\..\\", "\u0958" * 255)),
                True,
            ),
            "total_size": Field(
                (
                    *(one for one in NOT_A_NUMBER if "N" not in one and "I" not in one),
                    *texts("NaN", "Infinity", "-Infinity", -1, 1.5, 0.1, -(10**30)),
                ),
                True,
            ),
            "mime_type": Field(
                (
                    *NOT_A_STRING,
                    *NUL,
                    *texts("image", "image/gif", "text/plain; charset=utf-8", " text/plain", "x" * 10_000),
                ),
                True,
            ),
            "file_hash": Field((*NOT_A_STRING, *NUL, *texts("ab", "g" * 64, "ab" * 33, "\u0663" * 64, " " * 64)), True),
        },
    ),
    "CreateSignedUrl": Body(
        lambda: {"expires_in_seconds": 60},
        uploads_pb2.CreateSignedUrlRequest,
        {"file_id": Field(NOT_A_STRING), "expires_in_seconds": whole(-1, 604_801)},
    ),
}
# What they hold may be left out as a whole.
MAY_BE_EMPTY = ("BeginSecondFactor", "CreateGuest", "CreateSignedUrl", "RequestEmailVerification", "SignOut")


@dataclass(frozen=True)
class Batch:
    """A door whose document we read item by item."""

    good: Callable[[], dict[str, Any]]
    message: Any
    fields: dict[str, Field]
    stored: Callable[[dict[str, Any]], int]
    """How many items of an answer are stored, now or already."""
    refused: Callable[[dict[str, Any]], list[dict[str, str]]]
    """The errors in an answer, each with code, field and message."""
    items: str = "sessions"
    """What the document calls its items."""

    def document(self, *items: bytes) -> bytes:
        return b'{"%b": [%b]}' % (self.items.encode(), b", ".join(items))


OUT_OF_JSON = (*NOT_FOR_PROTOBUF, nested(40), nested(300), nested(900), '{"\\ud83d": 1}', '{"a": "\\ud83d"}')
OPEN = (
    *texts({"a": "\0"}, {"\0": 1}, {"a": "\ud83d"}, {"\ud83d": 1}),
    '{"a": 1e400}',
    '{"a": -1e400}',
    *(f'{{"a": {nested(levels)}}}' for levels in (33, 60, 300, 900)),
)


def item(bad: Iterable[str], *, required: bool = False) -> Field:
    return Field((*bad, *OUT_OF_JSON), required)


def item_number(below: float, above: float, *, required: bool = False, integer: bool = True) -> Field:
    return item((*NOT_A_NUMBER, *texts(below, above, *([1.5] if integer else []), 10**30)), required=required)


MOBILE = {"FIELD_INVALID": "SYNC_001", "FIELD_MISSING": "SYNC_002"}
BATCHES = {
    "UploadPuzzleSessionsJson": Batch(
        puzzle_session,
        puzzle_sessions_pb2.PuzzleSession,
        {
            "id": item((*NOT_A_STRING, *NUL, *texts("x" * 65, "a b", "a/b", "é")), required=True),
            "timestamp": item((*NOT_A_STRING, *NUL, *TIMES), required=True),
            "duration": item_number(-1, 604_801, required=True),
            "difficulty": item((*NOT_A_STRING, *NUL, *texts("", " ", "x" * 33, "é")), required=True),
            "declutter_text": item((*NOT_A_STRING, *NUL, *texts("x" * 10_001))),
            "mistake_count": item_number(-1, 1_000_001),
            "is_completed": item(NOT_A_BOOL),
            "puzzle_id": item_number(-1, 2**31),
        },
        lambda answer: answer["synced"],
        lambda answer: answer["rejected"],
    ),
    "BatchUploadJson": Batch(
        device_session,
        device_sessions_pb2.DeviceSession,
        {
            "client_session_id": item((*NOT_A_STRING, *NUL, *texts("7", "not-a-uuid", "x" * 10_000)), required=True),
            "device_type": item((*NOT_A_STRING, *NUL, *texts("", "x" * 33, "a b")), required=True),
            "training_id": item((*NOT_A_STRING, *NUL, *texts("x" * 101))),
            "started_at": item((*NOT_A_STRING, *NUL, *TIMES), required=True),
            "ended_at": item((*NOT_A_STRING, *NUL, *TIMES, *texts("2026-02-26T09:59:59Z"))),
            "total_duration_seconds": item_number(-1, 604_801, required=True),
            "total_distance_meters": item_number(-0.5, 10_000_001, integer=False),
            "total_calories": item_number(-0.5, 1_000_001, integer=False),
            "avg_heart_rate": item_number(-1, 301),
            "max_heart_rate": item_number(-1, 301),
            "xp_earned": item_number(-1, 1_000_000_001),
            "device_metrics": Field(
                (*NOT_AN_OBJECT, *OPEN, *texts({"avg_power_watts": -1}, {"avg_power_watts": "x"}, {"a": "x" * 300_000}))
            ),
            "samples": Field((*NOT_A_LIST, *(f"[{one}]" for one in OPEN), nested(300), nested(900))),
        },
        lambda answer: answer["created"] + answer["duplicates"],
        lambda answer: [one["error"] for one in answer["results"] if one["status"] == "error"],
    ),
    "PushChangesJson": Batch(
        change,
        sync_pb2.Change,
        {
            "domain": Field((*NOT_A_STRING, *NUL, *texts("nope", "TASK", "file", " ", "x" * 10_000)), required=True),
            "id": Field((*NOT_A_STRING, *NUL, *texts("x" * 65, "a b", "a/b", "é")), required=True),
            "base_version": item((*NOT_A_NUMBER, *texts(-1, 1.5), "-1" + "0" * 30)),
            "operation": item((*NOT_A_STRING, *NUL, *texts("MERGE", " ", "x" * 10_000)), required=True),
            "data": Field((*NOT_AN_OBJECT, *OPEN, *texts({"text": 7}, {"a": "x" * 300_000})), required=True),
            "client_time": item((*NOT_A_STRING, *NUL, *texts("yesterday", "2026-02-26", "2026-02-30T10:00:00Z"))),
            "atomic_group": Field((*NOT_A_STRING, *texts("x" * 65), nested(300), "1e400")),
        },
        lambda answer: sum(one["status"] in ("APPLIED", "DUPLICATE") for one in answer["receipts"]),
        lambda answer: [
            {**one, "code": MOBILE[one["reason"]]} for one in answer["receipts"] if one["status"] == "REJECTED"
        ],
        items="changes",
    ),
}

# What each parameter of a query or a path refuses, as it stands in the URL.
BAD_PAGES = {
    "page_size": ("-1", "1001", "x", "", "1.5", "true", "99999999999", "1e2", "%00", "%FF"),
    "page_token": ("!", "garbage", "%00", "x" * 2000, base64.urlsafe_b64encode(b"no time").decode()),
}
SINCE = ("x", "2026", "2026-13-01", "1e400", "%00", "0001-01-01T00:00:00%2B14:00", "x" * 2000)
KINDS = ("x", "SIGNED_IN", "signed_in,signed_out", "%00", "x" * 2000, "%20")
NOT_TENANTS = ("x", "", "-1", "1.5", "true", "99999999999", "%00")
NOT_HOURS = ("-1", "2161", "x", "", "1.5", "true", "99999999999", "%00")
PARAMETERS: dict[str, dict[str, tuple[str, ...]]] = {
    "GetMe": {},
    "ListIdentities": {},
    "UnlinkIdentity": {},
    "DeleteMe": {},
    "ListDevices": BAD_PAGES,
    "DeleteDevice": {"id": ("x", "7", "%20", "g" * 32, "x" * 2000)},
    "ListSecurityEvents": {"kind": KINDS, **BAD_PAGES},
    "ListTenantSecurityEvents": {
        "user_id": ("x", "7", "%00", "g" * 32, "x" * 2000),
        "kind": KINDS,
        "since": SINCE,
        **BAD_PAGES,
    },
    "ExportRecords": {},
    "ExportAccount": {},
    "GetDeletion": {},
    "GetSubscriptionStatus": {},
    "GetSecondFactor": {},
    "GetJwks": {},
    "GetStats": {},
    "GetUploadLimits": {},
    "CheckMesh": {},
    "GetExerciseSession": {"id": ("x", "7", "%20", "g" * 32, "x" * 2000, "sessions[3]")},
    "ListExerciseSessions": {
        "exerciseId": ("%00",),
        "pageSize": BAD_PAGES["page_size"],
        "pageToken": BAD_PAGES["page_token"],
    },
    "ListPuzzleSessions": {"since": SINCE, **BAD_PAGES},
    "ListSchemas": {},
    "GetSchema": {},
    "GetOpenApi": {},
    "GetDocs": {},
    "GetDocsFile": {},
    "GetAppVersion": {
        "platform": ("", "%00", "a%20b", "x" * 33, "%C3%A9"),
        "version": tuple(f"{bad}&platform=ios" for bad in ("x", "1.2.3.4", "01.2", "-1", "%00", "1" * 2000, "%D9%A1")),
    },
    "PullChangesJson": {
        "cursor": ("!", "garbage", "%00", "x" * 2000, "é", base64.urlsafe_b64encode(bytes(14)).decode()),
        "domains": ("nope", "bike,nope", "%00", "x" * 2000, "bike%20"),
        "limit": BAD_PAGES["page_size"],
    },
    "GetPolicy": {"tenant_id": ("x", "1.5", "true", "99999999999")},
    "ListConflicts": {
        "tenant_id": ("x", "", "1.5", "99999999999", "%00"),
        "since": SINCE,
        "resolution_result": ("open", "RESOLVED", "failed", "%00", "x" * 2000),
        **BAD_PAGES,
    },
    "GetConflict": {},
    "ListActiveUploads": BAD_PAGES,
    "UploadChunk": {"chunk_index": ("x", "1.5", "true", "99999999999", "%20")},
    "UploadContent": {},
    "GetUploadStatus": {},
    "FinalizeUpload": {},
    "CancelUpload": {},
    "ListFiles": BAD_PAGES,
    "DeleteFile": {},
    "GetSyncHealth": {"tenant_id": NOT_TENANTS, "hours": NOT_HOURS},
    "GetDeviceHealth": {"device_id": ("a.b", "%20", "%C3%A9", "x" * 256, "x" * 2000)},
    "ListDeviceHealth": {
        "tenant_id": NOT_TENANTS,
        "order_by": ("x", "SCORE", "score,device_id", "%20", "%00", "x" * 2000),
        "app_version": ("x" * 101, "%00"),
        **BAD_PAGES,
    },
    "ListSyncPoints": {
        "tenant_id": NOT_TENANTS,
        "hours": ("-1", "17521", "x", "", "1.5", "true", "99999999999", "%00"),
        "step": ("x", "HOUR", "week", "%20", "%00", "x" * 2000),
        "domain": ("%00", "x" * 65, "x" * 2000),
        "user_id": tuple(f"{bad}&device_id=a" for bad in ("x", "7", "%00", "g" * 32, "x" * 2000)),
        "device_id": tuple(f"{bad}&user_id={uuid4()}" for bad in ("a.b", "%20", "%00", "%C3%A9", "x" * 256)),
    },
    "WatchSyncHealth": {"tenant_id": NOT_TENANTS, "hours": NOT_HOURS},
    "GetFile": {"expires": tuple(f"{bad}&signature=x" for bad in ("", "x", "-1", "1.5", "9" * 13, "%D9%A1", "%00"))},
}
# Doors whose cases stand with the rest of what is known of them: they answer in another form, or to administrators.
ELSEWHERE = {
    "UpdateAppVersion": "test_meta.py",
    "CreateHealthMetricsJson": "test_metrics_and_plans.py",
    "ListHealthMetrics": "test_metrics_and_plans.py",
    "CreateWorkoutPlan": "test_metrics_and_plans.py",
    "GetWorkoutPlan": "test_metrics_and_plans.py",
    **dict.fromkeys(("CreateUser", "GetUser", "FindUser"), "test_users.py"),
    **dict.fromkeys(
        (f"{verb}GarminCredentials" for verb in ("Create", "Update", "Get", "Delete")), "test_garmin_credentials.py"
    ),
    **dict.fromkeys(
        ("CreateApplicationToken", "UpdateApplicationToken", "ListApplicationTokens"), "test_application_tokens.py"
    ),
    "ExchangeToken": "test_token_exchange.py",
    "HeadFile": "test_upload_refusals.py",
    "SignInWithProvider": "test_sso.py",
    "LinkIdentity": "test_sso.py",
    "AddActivity": "test_activities.py",
    "ReceiveEvent": "test_subscriptions.py",
    "ReceiveRevenueCatEvent": "test_subscriptions.py",
    **dict.fromkeys(("GetPage", "GetPageFile"), "test_files.py"),
    **dict.fromkeys(("LinkAccount", "VerifyMfa", "GetLink", "UnlinkAccount"), "garmin/test_bad_input.py"),
    **dict.fromkeys(("SyncActivities", "SyncHealth", "SyncWorkouts", "GetSyncStatus"), "garmin/test_bad_input.py"),
    **dict.fromkeys(("CancelSync", "ListSyncs", "UpdateSchedule"), "garmin/test_bad_input.py"),
}

# Bodies that are no JSON object at all, or none that anybody can read.
NO_OBJECT = {
    "null": b"null",
    "a list": b"[]",
    "a string": b'"x"',
    "a number": b"7",
    "NaN": b"NaN",
    "cut": b'{"a": ',
    "two": b"{} {}",
    "not a number": b'{"a": NaN}',
    "infinite": b'{"a": -Infinity}',
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "an overlong NUL": b'{"a": "\xc0\x80"}',
    "a mark and an object": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "deep": nested(1000).encode(),
    "very deep": nested(100_000).encode(),
    "a very deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "open without end": b"[" * 100_000,
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
}


@pytest.fixture(scope="module")
async def tester(edge: Edge) -> Phone:
    """One phone for all that is refused, by none of its rights; what it has stored must never change."""
    return await edge.administrator()


async def stored(phone: Phone) -> list[Any]:
    """All that the phone's user has, in every form in which it can be read."""
    answers = [
        await phone.call("GET", path)
        for path in (
            "/sessions",
            "/v1/sessions",
            "/users/me/stats",
            "/v1/auth/me",
            "/api/v1/sync/pull?limit=1000",
            "/api/v1/sync/conflicts",
            "/api/v1/sync/policies/1/journal",
            "/api/v1/files",
        )
    ]
    assert [answer.status_code for answer in answers] == [200] * len(answers), "it no longer answers"
    return [answer.json() for answer in answers]


def error_of(answer: httpx.Response, *, status: int = 400, code: str | None = None) -> dict[str, Any]:
    """The error in the envelope of an answer that is one in every respect."""
    assert answer.status_code == status, f"{answer.status_code}: {answer.text[:300]}"
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"code", "message", "details", "requestId", "timestamp"}
    assert error["message"]
    assert not INNER_WORDS.search(answer.text), answer.text[:300]
    assert error["requestId"] == f"req_{answer.headers['x-request-id']}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", error["timestamp"])
    if code is not None:
        assert error["code"] == code, answer.text[:300]
    return error


def with_field(good: dict[str, Any], name: str, value: str) -> bytes:
    """`good` as JSON with the text `value` for the field `name`."""
    rest = json.dumps({key: one for key, one in good.items() if key != name})
    return f'{rest[:-1]}{", " if rest != "{}" else ""}"{name}": {value}}}'.encode()


def shown(value: str) -> str:
    return value if len(value) < 60 else f"{value[:40]}... ({len(value)} characters)"


class Wrong:
    """Collects what was answered wrongly, so that one run shows all of it."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def check(self, what: str, check: Callable[[], object]) -> None:
        try:
            check()
        except (AssertionError, KeyError, ValueError) as error:
            self.found.append(f"{what}: {str(error).splitlines()[0] if str(error) else repr(error)}")

    def none(self) -> None:
        assert not self.found, "\n" + "\n".join(self.found)


def same(after: list[Any], before: list[Any]) -> Callable[[], None]:
    def check() -> None:
        assert after == before, "was changed by what was refused"

    return check


class TestTheListIsComplete:
    def test_every_rest_door_has_its_cases(self) -> None:
        assert {*BODIES, *BATCHES, *PARAMETERS, *ELSEWHERE} == set(POLICIES)

    @pytest.mark.parametrize("rpc", [*BODIES, *BATCHES])
    def test_every_field_of_a_body_has_its_cases(self, rpc: str) -> None:
        door = BODIES.get(rpc) or BATCHES[rpc]
        camel = rpc in BODIES and POLICIES[rpc].camel_case
        declared = door.message.DESCRIPTOR.fields
        assert {one.json_name if camel else one.name for one in declared} == set(door.fields)


def door(rpc: str) -> tuple[Policy, str, str]:
    """The policy of an rpc, and the verb and path of its first door."""
    policy = POLICIES[rpc]
    return policy, policy.http[0].verb, filled(policy.http[0].path)


class TestBodies:
    @pytest.mark.parametrize(("rpc", "name"), [(rpc, name) for rpc, body in BODIES.items() for name in body.fields])
    async def test_a_bad_field_is_named_and_nothing_is_written(self, tester: Phone, rpc: str, name: str) -> None:
        body, (policy, verb, path), wrong = BODIES[rpc], door(rpc), Wrong()
        before = await stored(tester)
        for value in body.fields[name].bad:
            answer = await tester.call(verb, path, content=with_field(body.good(), name, value))

            def named(answer: httpx.Response = answer, value: str = value) -> None:
                error = error_of(answer, code=INVALID[policy.dialect])
                # Of a list the transcoder does not say where it stood.
                if not (value.startswith("[") and error["details"] == []):
                    assert [one["field"] for one in error["details"]] == [name], error
                    assert error["message"].startswith(f"{name}: ")

            wrong.check(shown(value), named)
        wrong.check("what is stored", same(await stored(tester), before))
        wrong.none()

    @pytest.mark.parametrize(("rpc", "name"), [(rpc, name) for rpc, body in BODIES.items() for name in body.fields])
    async def test_what_protobuf_has_no_word_for_is_refused(self, tester: Phone, rpc: str, name: str) -> None:
        body, (policy, verb, path), wrong = BODIES[rpc], door(rpc), Wrong()
        before = await stored(tester)
        for value in (*NOT_FOR_PROTOBUF, nested(1000), nested(100_000)):
            answer = await tester.call(verb, path, content=with_field(body.good(), name, value))
            wrong.check(shown(value), lambda answer=answer: error_of(answer, code=INVALID[policy.dialect]))
        wrong.check("what is stored", same(await stored(tester), before))
        wrong.none()

    @pytest.mark.parametrize(
        ("rpc", "name"),
        [(rpc, name) for rpc, body in BODIES.items() for name, one in body.fields.items() if one.required],
    )
    async def test_a_field_that_must_be_there_is_asked_for(self, tester: Phone, rpc: str, name: str) -> None:
        body, (policy, verb, path) = BODIES[rpc], door(rpc)
        before = await stored(tester)
        missing = json.dumps({key: one for key, one in body.good().items() if key != name}).encode()
        for content in (missing, with_field(body.good(), name, "null")):
            answer = await tester.call(verb, path, content=content)
            error = error_of(answer, code=MISSING_FIELD[policy.dialect])
            assert error["details"] == [{"field": name, "reason": "REQUIRED"}]
        assert await stored(tester) == before

    async def test_of_a_field_that_comes_twice_one_counts(self, edge: Edge) -> None:
        phone = await edge.phone()
        answer = await phone.call("PATCH", "/users/me/stats", content=b'{"total_xp": 1, "total_xp": 2}')
        assert answer.status_code in (200, 400)
        assert (await stored(phone))[2]["total_xp"] in ((1, 2) if answer.status_code == 200 else (0,))

    async def test_an_empty_patch_is_refused(self, tester: Phone) -> None:
        before = await stored(tester)
        for content in (b"", b"{}", b'{"unknown": 1}', b'{"total_xp": null}'):
            error_of(await tester.call("PATCH", "/users/me/stats", content=content), code="VALIDATION_FAILED")
        assert await stored(tester) == before


class TestDocuments:
    @pytest.mark.parametrize("rpc", [*BODIES, *BATCHES])
    async def test_what_is_no_object_is_refused_at_every_path(self, tester: Phone, rpc: str) -> None:
        policy, wrong = POLICIES[rpc], Wrong()
        before = await stored(tester)
        for rule in policy.http:
            for name, content in NO_OBJECT.items():
                answer = await tester.call(rule.verb, filled(rule.path), content=content)
                wrong.check(f"{rule.path} {name}", lambda answer=answer: error_of(answer, code=INVALID[policy.dialect]))
        wrong.check("what is stored", same(await stored(tester), before))
        wrong.none()

    @pytest.mark.parametrize("rpc", [rpc for rpc in [*BODIES, *BATCHES] if rpc not in MAY_BE_EMPTY])
    async def test_an_empty_body_is_refused(self, tester: Phone, rpc: str) -> None:
        policy, verb, path = door(rpc)
        for content in (b"", b"   ", b"{}"):
            error = error_of(await tester.call(verb, path, content=content))
            assert error["code"] in (INVALID[policy.dialect], MISSING_FIELD[policy.dialect])

    @pytest.mark.parametrize("size", [8 * MIB + 1, 10_000_000, 20_000_000])
    @pytest.mark.parametrize("rpc", [*BODIES, *BATCHES])
    async def test_a_body_over_8_mib_is_too_large(self, edge: Edge, rpc: str, size: int) -> None:
        _, verb, path = door(rpc)
        answer = await answered_early(edge, verb, path, b'{"sessions": ["' + b"x" * (size - 18) + b'"]}')
        error = error_of(answer, status=413, code="PAYLOAD_TOO_LARGE")
        assert error["details"] == []

    @pytest.mark.parametrize("size", [9_000_000, 20_000_000])
    async def test_a_body_that_does_not_say_its_length_is_too_large_as_well(self, edge: Edge, size: int) -> None:
        answer = await answered_early(edge, "POST", "/sessions/batch_upload", b" " * size, chunked=True)
        error_of(answer, status=413, code="PAYLOAD_TOO_LARGE")


async def answered_early(edge: Edge, verb: str, path: str, body: bytes, *, chunked: bool = False) -> httpx.Response:
    """The answer to a body of which the edge may not read the end: it is read while the body is being sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    length = "transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"
    writer.write(f"{verb} {path} HTTP/1.1\r\nhost: edge\r\n{length}\r\n\r\n".encode())
    writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
    try:
        async with asyncio.timeout(10):
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            content = await reader.readexactly(int(headers["content-length"]))
    finally:
        writer.transport.abort()
    return httpx.Response(int(status.split()[1]), headers=[one for one in headers.items() if one[0]], content=content)


class TestBatches:
    @pytest.mark.parametrize(("rpc", "name"), [(rpc, name) for rpc, batch in BATCHES.items() for name in batch.fields])
    async def test_a_bad_item_is_refused_alone(self, edge: Edge, rpc: str, name: str) -> None:
        phone = await edge.phone()
        batch, (policy, verb, path), wrong = BATCHES[rpc], door(rpc), Wrong()
        good = json.dumps(batch.good()).encode()
        await phone.call(verb, path, content=batch.document(good))
        before = await stored(phone)
        absent = json.dumps({key: one for key, one in batch.good().items() if key != name}).encode()
        bad = {shown(value): with_field(batch.good(), name, value) for value in batch.fields[name].bad}
        if batch.fields[name].required:
            bad |= {"missing": absent, "null": with_field(batch.good(), name, "null")}
        for value, one in bad.items():
            answer = await phone.call(verb, path, content=batch.document(one, good))
            code = (MISSING_FIELD if value in ("missing", "null") else INVALID)[policy.dialect]

            def named(answer: httpx.Response = answer, code: str = code) -> None:
                assert answer.status_code == 200, f"{answer.status_code}: {answer.text[:200]}"
                body = answer.json()
                assert batch.stored(body) == 1, answer.text[:300]
                errors = batch.refused(body)
                assert len(errors) == 1, answer.text[:300]
                assert errors[0]["code"] == code
                assert re.match(rf"{batch.items}\[0\]\.{name}\b", errors[0]["field"]), errors[0]
                assert errors[0]["message"].startswith(f"{errors[0]['field']}: ")
                assert not INNER_WORDS.search(answer.text), answer.text[:300]

            wrong.check(value, named)
        wrong.check("what is stored", same(await stored(phone), before))
        wrong.none()

    @pytest.mark.parametrize("rpc", BATCHES)
    async def test_among_bad_items_of_every_kind_the_good_ones_are_stored(self, edge: Edge, rpc: str) -> None:
        phone, batch, (_, verb, path) = await edge.phone(), BATCHES[rpc], door(rpc)
        bad = [
            with_field(batch.good(), name, value)
            for name, one in batch.fields.items()
            for value in one.bad
            if len(value) < 1000
        ]
        assert len(bad) > 100
        day = {"timestamp"} & {*batch.fields}  # the free tier has room for one puzzle a day
        good = [{**batch.good(), **dict.fromkeys(day, f"2025-0{number}-01T10:00:00Z")} for number in range(1, 6)]
        items = [json.dumps(good[0]).encode(), *bad[:50], json.dumps(good[1]).encode(), *bad[50:]]
        items += [json.dumps(one).encode() for one in good[2:]]
        answer = await phone.call(verb, path, content=batch.document(*items))
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert (batch.stored(body), len(batch.refused(body))) == (len(good), len(bad))
        numbers = [int(one["field"].partition("[")[2].partition("]")[0]) for one in batch.refused(body)]
        assert numbers == [*range(1, 51), *range(52, len(bad) + 2)]
        assert len((await stored(phone))[4]["changes"]) == len(good)

    @pytest.mark.parametrize("rpc", BATCHES)
    @pytest.mark.parametrize(
        ("document", "reason"),
        [
            ("{}", "REQUIRED"),
            ('{"items": null}', "REQUIRED"),
            ('{"items": []}', "REQUIRED"),
            ('{"items": {}}', "INVALID_TYPE"),
            ('{"items": "x"}', "INVALID_TYPE"),
            ('{"items": 7}', "INVALID_TYPE"),
            ('{"items": true}', "INVALID_TYPE"),
            ('{"items": [{}' + ",{}" * 1000 + "]}", "TOO_MANY"),
            ('{"items": [[]], "items": []}', "REQUIRED"),
        ],
        ids=lambda value: value[:30],
    )
    async def test_a_document_without_1_to_1000_items_names_them(
        self, tester: Phone, rpc: str, document: str, reason: str
    ) -> None:
        policy, verb, path = door(rpc)
        name = BATCHES[rpc].items
        answer = await tester.call(verb, path, content=document.replace("items", name))
        error = error_of(answer, code=(MISSING_FIELD if reason == "REQUIRED" else INVALID)[policy.dialect])
        assert error["details"] == [{"field": name, "reason": reason}]

    async def test_a_thousand_items_are_not_too_many(self, edge: Edge) -> None:
        phone = await edge.phone()
        answer = await phone.call("POST", "/v1/sessions/batch_upload", json={"sessions": [device_session()] * 1000})
        assert (answer.status_code, answer.json()["created"], answer.json()["duplicates"]) == (200, 1, 999)

    @pytest.mark.parametrize("one", ["null", "7", '"x"', "[]", "true", nested(900), '"\\ud83d"', "1e400"], ids=shown)
    async def test_an_item_that_is_no_object_is_refused_by_its_number(self, tester: Phone, one: str) -> None:
        document = f'{{"sessions": [{json.dumps(device_session(started_at="x"))}, {one}]}}'
        answer = await tester.call("POST", "/sessions/batch_upload", content=document)
        assert [result["error"]["field"] for result in answer.json()["results"]][1:] == ["sessions[1]"]
        document = f'{{"sessions": [{json.dumps(puzzle_session(duration=-1))}, {one}]}}'
        error = error_of(await tester.call("POST", "/v1/sessions", content=document), code="INVALID_REQUEST")
        assert error["details"] == [{"field": "sessions[0].duration", "reason": "OUT_OF_RANGE"}]

    @pytest.mark.parametrize("size", [300_000, 5_000_000])
    async def test_metrics_that_are_too_large_fail_alone(self, edge: Edge, size: int) -> None:
        phone = await edge.phone()
        sessions = [device_session(device_metrics={"trace": "x" * size}), device_session()]
        answer = await phone.call("POST", "/sessions/batch_upload", json={"sessions": sessions})
        assert (answer.status_code, answer.json()["created"], answer.json()["failed"]) == (200, 1, 1)
        assert answer.json()["results"][0]["error"]["field"] == "sessions[0].device_metrics"

    async def test_numbers_beyond_64_bits_are_kept_or_refused_but_never_dropped(self, edge: Edge) -> None:
        phone = await edge.phone()
        for number in ("1" + "0" * 30, "18446744073709551616", "-9223372036854775809", "1e308"):
            content = with_field(device_session(), "device_metrics", f'{{"a": {number}}}')
            answer = await phone.call("POST", "/sessions/batch_upload", content=b'{"sessions": [%b]}' % content)
            assert answer.status_code == 200
            assert answer.json()["results"][0]["status"] in ("created", "error")

    async def test_a_whole_number_may_be_written_with_a_point(self, edge: Edge) -> None:
        phone = await edge.phone()
        content = with_field(puzzle_session(), "duration", "900.0")
        answer = await phone.call("POST", "/v1/sessions", content=b'{"sessions": [%b]}' % content)
        assert answer.json()["synced"] == 1
        answer = await phone.call("GET", "/v1/sessions")
        assert answer.status_code == 200, answer.text
        assert answer.json()["sessions"][0]["duration"] == 900

    async def test_a_repeat_with_its_key_is_answered_as_before_though_an_item_became_valid(self, edge: Edge) -> None:
        phone = await edge.phone()
        soon = datetime.now(UTC) + timedelta(days=1, seconds=0.7)
        early = soon.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        requests = {
            "/sessions/batch_upload": {
                "sessions": [device_session(), device_session(started_at=early, ended_at=early)]
            },
            "/v1/sessions": {"sessions": [puzzle_session(), puzzle_session(timestamp=early)]},
        }
        first = {
            path: await phone.call("POST", path, json=body, headers={"idempotency-key": "k"})
            for path, body in requests.items()
        }
        assert first["/sessions/batch_upload"].json()["failed"] == 1
        assert len(first["/v1/sessions"].json()["rejected"]) == 1
        deadline = time.monotonic() + 5
        valid = False
        while not valid and time.monotonic() < deadline:
            probe = {"sessions": [puzzle_session(id="probe", timestamp=early)]}
            valid = (await phone.call("POST", "/v1/sessions", json=probe)).status_code == 200
        assert valid
        for path, body in requests.items():
            again = await phone.call("POST", path, json=body, headers={"idempotency-key": "k"})
            assert again.status_code == 200, again.text
            for part in ("results", "rejected", "synced"):
                assert again.json().get(part) == first[path].json().get(part), path


class TestParameters:
    @pytest.mark.parametrize(
        ("rpc", "name"), [(rpc, name) for rpc, parameters in PARAMETERS.items() for name in parameters]
    )
    async def test_a_bad_parameter_is_named(self, tester: Phone, rpc: str, name: str) -> None:
        policy, wrong = POLICIES[rpc], Wrong()
        for value in PARAMETERS[rpc][name]:
            path, query = policy.http[0].path, f"?{name}={value}"
            url = filled(path, **{name: value}) + ("" if f"{{{name}}}" in path else query)
            answer = await tester.call(policy.http[0].verb, url)

            def named(answer: httpx.Response = answer) -> None:
                error = error_of(answer, code=INVALID[policy.dialect])
                assert [one["field"] for one in error["details"]] == [name], error

            wrong.check(shown(url), named)
        wrong.none()

    @pytest.mark.parametrize("rpc", PARAMETERS)
    async def test_an_unknown_parameter_is_refused_at_every_path(self, tester: Phone, rpc: str) -> None:
        policy = POLICIES[rpc]
        for rule in policy.http:
            answer = await tester.call(rule.verb, filled(rule.path) + "?nope=1")
            error = error_of(answer, code=INVALID[policy.dialect])
            assert error["details"] == [{"field": "nope", "reason": "UNKNOWN"}]

    @pytest.mark.parametrize("query", ["%FF=1", "since=%FF", "page_token=%ED%A0%80", "since.x=1", "a%00b=1"])
    async def test_a_query_that_is_no_text_is_refused(self, tester: Phone, query: str) -> None:
        error_of(await tester.call("GET", f"/v1/sessions?{query}"), code="INVALID_REQUEST")

    # Whoever asks for /sessions/.. asks for the operator's page.
    @pytest.mark.parametrize("id", ["%FF", "%00", "a%2Fb", "%ED%A0%80", "../x"])
    async def test_a_path_that_is_no_text_is_refused(self, tester: Phone, id: str) -> None:
        answer = await tester.call("GET", f"/sessions/{id}")
        assert answer.status_code in (400, 404)
        error_of(answer, status=answer.status_code)

    async def test_what_python_would_take_for_a_uuid_is_none(self, tester: Phone) -> None:
        """int() takes underscores, signs and spaces among the digits; no phone's UUID has them."""
        for id in ("1234567_-1234-1234-1234-123456789012", "+1234567-1234-1234-1234-12345678901_"):
            answer = await tester.call("POST", "/sessions", json=exercise_session(id=id, duration=-1))
            assert error_of(answer)["details"][0]["field"] == "id", id


class TestIdempotencyKeys:
    @pytest.mark.parametrize(
        "key", ["k" * 256, "k" * 7000, "a b", "a\tb", "schlüssel".encode()], ids=["256", "7000", "space", "tab", "utf8"]
    )
    @pytest.mark.parametrize("header", ["idempotency-key", "x-idempotency-key"])
    @pytest.mark.parametrize("rpc", [rpc for rpc, policy in POLICIES.items() if policy.takes_key])
    async def test_a_bad_key_is_refused(self, tester: Phone, rpc: str, header: str, key: str | bytes) -> None:
        policy, verb, path = door(rpc)
        before = await stored(tester)
        # The key is read before the body: a door whose cases stand elsewhere needs none.
        bodies = {rpc: body.good for rpc, body in BODIES.items()} | dict.fromkeys(ELSEWHERE, dict)
        body = bodies[rpc]() if rpc in bodies else {BATCHES[rpc].items: [BATCHES[rpc].good()]}
        answer = await tester.call(verb, path, json=body, headers={header: key})
        name = "idempotencyKey" if policy.camel_case else "idempotency_key"
        if policy.dialect == options.DIALECT_DETAIL:
            assert (answer.status_code, answer.json()["detail"].partition(": ")[0]) == (400, name)
        else:
            error = error_of(answer, code=INVALID[policy.dialect])
            assert [one["field"] for one in error["details"]] == [name]
        assert await stored(tester) == before

    async def test_an_empty_key_is_none(self, edge: Edge) -> None:
        phone = await edge.phone()
        for _ in range(2):
            answer = await phone.call("POST", "/sessions", json=exercise_session(), headers={"idempotency-key": ""})
            assert answer.status_code == 201
        assert len((await phone.call("GET", "/sessions")).json()["sessions"]) == 2


class TestHeaders:
    @pytest.mark.parametrize("size", [10_000, 14_000, 20_000, 30_000])
    async def test_large_headers_are_never_taken_for_too_many_calls(self, tester: Phone, size: int) -> None:
        for _ in range(5):
            answer = await tester.call("GET", "/v1/auth/me", headers={"x-filler": "x" * size})
            assert answer.status_code in (200, 431), f"{answer.status_code}: {answer.text[:200]}"
            if answer.status_code == 431:
                error_of(answer, status=431)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("x-anything-bin", "not base64!"),
            ("grpc-timeout", "garbage"),
            ("grpc-timeout", "1n"),
            ("grpc-encoding", "nonsense"),
            ("grpc-status", "13"),
            ("grpc-tags-bin", "!"),
            ("te", "nonsense"),
            ("x-http-status", "200"),
            ("x-envoy-original-path", "/"),
        ],
    )
    async def test_headers_of_grpc_mean_nothing_in_a_rest_call(self, tester: Phone, name: str, value: str) -> None:
        answer = await tester.call("GET", "/v1/auth/me", headers={name: value})
        assert answer.status_code in (200, 400), f"{answer.status_code}: {answer.text[:200]}"

    @pytest.mark.parametrize("agent", [b"App\t1.0", b"App/1.0 (Zo\xc3\xab's phone)", b"App \xe9", b"", b"x" * 5000])
    async def test_no_user_agent_keeps_anybody_from_signing_in(self, edge: Edge, tester: Phone, agent: bytes) -> None:
        body = {"email": tester.email, "password": PASSWORD}
        answer = await edge.http.post("/v1/auth/signin", json=body, headers={b"user-agent": agent})
        assert answer.status_code == 200, answer.text


class TestAccounts:
    @pytest.mark.parametrize("email", ["a\0b@example.com", "\0", "x" * 100_000, "a\nb", "é@é.é", "%", "\U0001f600"])
    async def test_signing_in_with_what_is_no_address_is_wrong_credentials(self, edge: Edge, email: str) -> None:
        answer = await edge.http.post("/v1/auth/signin", json={"email": email, "password": PASSWORD})
        assert answer.status_code in (400, 401), answer.text
        error = error_of(answer, status=answer.status_code)
        assert error["code"] == ("INVALID_CREDENTIALS" if answer.status_code == 401 else "INVALID_REQUEST")

    @pytest.mark.parametrize("password", ["\0" * 20, "x" * 1_000_000, "\U0001f600" * 10, " "])
    async def test_a_password_of_any_kind_is_only_a_wrong_one(self, edge: Edge, tester: Phone, password: str) -> None:
        answer = await edge.http.post("/v1/auth/signin", json={"email": tester.email, "password": password})
        error_of(answer, status=401, code="INVALID_CREDENTIALS")

    @pytest.mark.parametrize(
        "spelling", ["e\u0301tienne.{}@example.com", "user.{}@xn--bcher-kva.example", "U.{}@B\u00fccher.example"]
    )
    async def test_an_account_signs_in_with_the_address_it_signed_up_with(self, edge: Edge, spelling: str) -> None:
        account = {"email": spelling.format(uuid4().hex), "password": PASSWORD}
        assert (await edge.http.post("/v1/auth/signup", json=account)).status_code == 201
        answer = await edge.http.post("/v1/auth/signin", json=account)
        assert answer.status_code == 200, answer.text

    @pytest.mark.parametrize(
        "token",
        ["x", "rt_", "rt_!!!", "rt_" + "A" * 86, "rt_" + "A" * 85, "rt_" + "é" * 20, "\0", "x" * 100_000, "rt_ A"],
        ids=shown,
    )
    async def test_a_made_up_refresh_token_is_invalid(self, edge: Edge, token: str) -> None:
        answer = await edge.http.post("/v1/auth/refresh", json={"refresh_token": token})
        error_of(answer, status=401, code="UNAUTHORIZED")


def encoded(part: Any) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(edge: Edge, phone: Phone, kind: str) -> str:
    """The value of an Authorization header that must open nothing."""
    head, payload, signature = phone.access_token.split(".")
    config = edge.mesh.config
    key = signing_keys(config.keys)[0]
    claims = jwt.decode(phone.access_token, options={"verify_signature": False})
    stranger = ec.generate_private_key(ec.SECP256R1())

    def signed(changes: dict[str, Any], *, headers: dict[str, Any] | None = None, private: Any = key.private) -> str:
        given = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        return "Bearer " + jwt.encode(given, private, algorithm="ES256", headers=headers or {"kid": key.kid})

    principal = Principal(
        user_id=UUID(phone.user_id), sign_in_id=UUID(claims["sid"]), tenant_id=1, role="user", tier="free"
    )
    made: dict[str, Callable[[], str]] = {
        "no bearer": lambda: phone.access_token,
        "basic": lambda: "Basic dXNlcjpwYXNz",
        "only the scheme": lambda: "Bearer",
        "empty": lambda: "",
        "two tokens": lambda: f"Bearer {phone.access_token} {phone.access_token}",
        "two in a list": lambda: f"Bearer {phone.access_token}, Bearer {phone.access_token}",
        "no jwt": lambda: "Bearer garbage",
        "dots": lambda: "Bearer ...",
        "two parts": lambda: f"Bearer {head}.{payload}",
        "10 KB": lambda: "Bearer " + "x" * 10_000,
        "alg none": lambda: f"Bearer {encoded({'alg': 'none', 'typ': 'JWT'})}.{payload}.",
        "alg none, signed": lambda: f"Bearer {encoded({'alg': 'none', 'kid': key.kid})}.{payload}.{signature}",
        "wrong alg": lambda: "Bearer " + jwt.encode(claims, "x" * 64, algorithm="HS512", headers={"kid": key.kid}),
        "public key as secret": lambda: (
            "Bearer " + jwt.encode(claims, key.jwk["x"] * 2, algorithm="HS256", headers={"kid": key.kid})
        ),
        "tampered payload": lambda: f"Bearer {head}.{encoded({**claims, 'role': 'admin'})}.{signature}",
        "tampered signature": lambda: f"Bearer {head}.{payload}.{encoded(bytes(64))}",
        "another's key": lambda: signed({}, private=stranger),
        "other kid": lambda: signed({}, headers={"kid": "nobody"}),
        "kid is a list": lambda: f"Bearer {encoded({'alg': 'ES256', 'kid': ['x']})}.{payload}.{signature}",
        "deep header": lambda: f"Bearer {encoded(b'[' * 3000 + b']' * 3000)}.{payload}.{signature}",
        "deep member": lambda: (
            "Bearer " + encoded(b'{"alg":' + b"[" * 2500 + b"]" * 2500 + b"}") + f".{payload}.{signature}"
        ),
        "header no UTF-8": lambda: f"Bearer {encoded(bytes([255, 254]))}.{payload}.{signature}",
        "other issuer": lambda: signed({"iss": "somebody"}),
        "no issuer": lambda: signed({"iss": None}),
        "no subject": lambda: signed({"sub": None}),
        "no sign-in": lambda: signed({"sid": None}),
        "no expiry": lambda: signed({"exp": None}),
        "subject no uuid": lambda: signed({"sub": "me"}),
        "sign-in no uuid": lambda: signed({"sid": "x"}),
        "tenant no number": lambda: signed({"tenant_id": "x"}),
        "expiry no number": lambda: signed({"exp": "soon"}),
        "expiry beyond time": lambda: signed({"exp": 10**30, "nbf": 10**30}),
        "not yet": lambda: signed({"nbf": int(time.time()) + 1000}),
        "for the mesh": lambda: signed({"aud": MESH_AUDIENCE}),
        "expired": lambda: "Bearer " + AccessTokens([key], clock=lambda: time.time() - 2 * 3600).mint(principal),
        "service token, wrong secret": lambda: "Bearer " + ServiceTokens(b"x" * 32, "auth").current(),
        "service token, expired": lambda: (
            "Bearer " + ServiceTokens(mesh_secret(config.keys), "auth", clock=lambda: time.time() - 3600).current()
        ),
        "service token, other audience": lambda: (
            "Bearer "
            + jwt.encode(
                {"iss": ISSUER, "aud": "x", "sub": "service:auth", "iat": time.time(), "exp": time.time() + 60},
                mesh_secret(config.keys),
                algorithm="HS256",
            )
        ),
        "a refresh token": lambda: f"Bearer {phone.refresh_token}",
        "UTF-8": lambda: "Bearer schlüssel",
    }
    return made[kind]()


MISSING = ("no bearer", "basic", "only the scheme", "empty")
EXPIRED = ("expired", "service token, expired")
FORGERIES = (
    *MISSING,
    *EXPIRED,
    *("two tokens", "two in a list", "no jwt", "dots", "two parts", "10 KB", "alg none", "alg none, signed"),
    *("wrong alg", "public key as secret", "tampered payload", "tampered signature", "another's key", "other kid"),
    *("kid is a list", "deep header", "deep member", "header no UTF-8", "other issuer", "no issuer", "no subject"),
    *("no sign-in", "no expiry", "subject no uuid", "sign-in no uuid", "tenant no number", "expiry no number"),
    *("not yet", "for the mesh", "service token, wrong secret", "service token, other audience", "a refresh token"),
    *("UTF-8",),
)


class TestAuthorization:
    @pytest.mark.parametrize("kind", FORGERIES)
    async def test_a_header_that_is_no_good_token_opens_nothing(self, edge: Edge, tester: Phone, kind: str) -> None:
        header = forged(edge, tester, kind).encode()
        reason = "MISSING_BEARER_TOKEN" if kind in MISSING else "TOKEN_EXPIRED" if kind in EXPIRED else "INVALID_TOKEN"
        for path, dialect in (
            ("/v1/auth/me", options.DIALECT_FLOW),
            ("/users/me/stats", options.DIALECT_CORE),
            ("/api/v1/uploads/limits", options.DIALECT_MOBILE),
        ):
            answer = await edge.http.get(path, headers={b"authorization": header})
            code = "AUTH_002" if (kind in EXPIRED and dialect == options.DIALECT_MOBILE) else UNAUTHENTICATED[dialect]
            error = error_of(answer, status=401, code=code)
            assert error["details"] == [{"field": "Authorization", "reason": reason}]

    async def test_the_scheme_is_written_in_any_case(self, edge: Edge, tester: Phone) -> None:
        for scheme in ("bearer", "BEARER"):
            headers = {"authorization": f"{scheme} {tester.access_token}"}
            assert (await edge.http.get("/v1/auth/me", headers=headers)).status_code == 200

    async def test_a_garbage_token_is_no_obstacle_to_what_is_public(self, edge: Edge) -> None:
        for path in ("/.well-known/jwks.json", "/healthz"):
            assert (await edge.http.get(path, headers={"authorization": "Bearer garbage"})).status_code == 200


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**40), 10**40), st.floats(), ANY_TEXT,
    st.sampled_from(["", "medium", "bike", "2026-02-26T10:00:00Z", str(UUID(int=7)), "\0", "\ud83d"]),
)  # fmt: skip


def trees(names: Iterable[str]) -> st.SearchStrategy[Any]:
    """JSON values, with these names among those of their members."""
    keys = st.one_of(st.sampled_from(sorted(names)), ANY_TEXT)
    return st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=8), max_leaves=30
    )


def near(good: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a phone sends, with some of it replaced by anything."""
    anything = trees(good)
    return st.dictionaries(st.sampled_from(sorted(good)), anything, max_size=2).map(lambda bad: {**good, **bad})


class TestAnything:
    """Never a failure of ours; always an envelope, or an answer."""

    async def send(self, phone: Phone, verb: str, path: str, value: Any) -> None:
        answer = await phone.call(verb, path, content=json.dumps(value).encode())
        if answer.status_code >= 400:
            assert answer.status_code in (400, 401, 403, 409), answer.text
            error_of(answer, status=answer.status_code)
        else:
            assert answer.headers["content-type"] == "application/json"
            assert isinstance(answer.json(), dict)
        for read in ("/sessions", "/v1/sessions", "/users/me/stats", "/api/v1/sync/pull", "/api/v1/sync/conflicts"):
            again = await phone.call("GET", read)
            assert again.status_code == 200, f"{read}: {again.text}"

    @given(value=trees(("sessions", *device_session())) | st.lists(near(device_session()), max_size=4))
    @settings(max_examples=100)
    async def test_a_batch_of_recordings(self, phone: Phone, value: Any) -> None:
        document = {"sessions": value} if isinstance(value, list) else value
        await self.send(phone, "POST", "/sessions/batch_upload", document)

    @given(value=trees(("sessions", *puzzle_session())) | st.lists(near(puzzle_session()), max_size=4))
    @settings(max_examples=100)
    async def test_a_batch_of_puzzles(self, phone: Phone, value: Any) -> None:
        document = {"sessions": value} if isinstance(value, list) else value
        await self.send(phone, "POST", "/v1/sessions", document)

    @given(value=trees(("changes", *change())) | st.lists(near(change()), max_size=4))
    @settings(max_examples=100)
    async def test_a_push(self, phone: Phone, value: Any) -> None:
        document = {"changes": value, "idempotency_key": str(uuid4())} if isinstance(value, list) else value
        await self.send(phone, "POST", "/api/v1/sync/push", document)

    @given(value=trees(("resolution_policy", "auto_resolve", "validate_only")))
    @settings(max_examples=60)
    async def test_a_policy(self, tester: Phone, value: Any) -> None:
        if isinstance(value, dict):
            value = {**value, "validate_only": True}
        await self.send(tester, "PUT", "/api/v1/sync/policies/1/journal", value)

    @given(value=trees(exercise_session()) | near({**exercise_session(), "id": "", "idempotencyKey": ""}))
    @settings(max_examples=100)
    async def test_a_session(self, phone: Phone, value: Any) -> None:
        await self.send(phone, "POST", "/sessions", value)

    @given(value=trees(("total_xp", "extra", "total_sessions", "idempotency_key")))
    @settings(max_examples=100)
    async def test_a_patch_of_the_totals(self, phone: Phone, value: Any) -> None:
        await self.send(phone, "PATCH", "/users/me/stats", value)

    @given(value=trees(("email", "password", "device_name")) | near({"email": "a@example.com", "password": ""}))
    @settings(max_examples=60)
    async def test_a_sign_in(self, phone: Phone, value: Any) -> None:
        await self.send(phone, "POST", "/v1/auth/signin", value)
