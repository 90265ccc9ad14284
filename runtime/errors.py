"""Owns what can go wrong: one table from reason to gRPC code, HTTP status and the code in each error dialect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final

from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import StatusCode
from satchel.options.v1 import options_pb2 as options

ERROR_DOMAIN: Final = "satchel"
# A header carries the REST body, and Envoy's default limit for all headers together is 60 KiB.
MAX_MESSAGE_CHARS: Final = 500
MAX_VIOLATIONS: Final = 20


@dataclass(frozen=True, eq=False)
class Row:
    """One line of the error table; each dialect's code is what its published API calls the case."""

    code: StatusCode
    http: int
    core: str
    flow: str
    mobile: str
    message: str


def _same(code: StatusCode, http: int, name: str, message: str) -> Row:
    return Row(code, http, name, name, name, message)


class Reason(Enum):
    """Why a call or an item was refused; the names are those of satchel.errors.v1.Reason."""

    MISSING_BEARER_TOKEN = Row(
        StatusCode.UNAUTHENTICATED,
        401,
        "AUTH_UNAUTHORIZED",
        "UNAUTHORIZED",
        "AUTH_001",
        "The call needs an access token.",
    )
    INVALID_TOKEN = Row(
        StatusCode.UNAUTHENTICATED,
        401,
        "AUTH_UNAUTHORIZED",
        "UNAUTHORIZED",
        "AUTH_001",
        "The token is invalid.",
    )
    TOKEN_EXPIRED = Row(
        StatusCode.UNAUTHENTICATED,
        401,
        "AUTH_UNAUTHORIZED",
        "UNAUTHORIZED",
        "AUTH_002",
        "The token has expired.",
    )
    TOKEN_REVOKED = Row(
        StatusCode.UNAUTHENTICATED,
        401,
        "AUTH_UNAUTHORIZED",
        "UNAUTHORIZED",
        "AUTH_001",
        "The token was revoked.",
    )
    INVALID_CREDENTIALS = Row(
        StatusCode.UNAUTHENTICATED,
        401,
        "INVALID_CREDENTIALS",
        "INVALID_CREDENTIALS",
        "AUTH_001",
        "Email or password is incorrect.",
    )
    INVALID_CODE = _same(
        StatusCode.INVALID_ARGUMENT, 400, "INVALID_CODE", "The code is wrong or no longer good; ask for a new one."
    )
    FORBIDDEN = Row(
        StatusCode.PERMISSION_DENIED,
        403,
        "AUTH_FORBIDDEN",
        "FORBIDDEN",
        "AUTH_FORBIDDEN",
        "You may not do this.",
    )
    TIER_LIMIT = Row(
        StatusCode.PERMISSION_DENIED,
        403,
        "AUTH_FORBIDDEN",
        "FORBIDDEN",
        "AUTH_FORBIDDEN",
        "Your tier does not allow this.",
    )
    MALFORMED_REQUEST = Row(
        StatusCode.INVALID_ARGUMENT,
        400,
        "VALIDATION_FAILED",
        "INVALID_REQUEST",
        "SYNC_001",
        "The request cannot be read.",
    )
    FIELD_MISSING = Row(
        StatusCode.INVALID_ARGUMENT,
        400,
        "VALIDATION_FAILED",
        "INVALID_REQUEST",
        "SYNC_002",
        "A field is missing.",
    )
    FIELD_INVALID = Row(
        StatusCode.INVALID_ARGUMENT,
        400,
        "VALIDATION_FAILED",
        "INVALID_REQUEST",
        "SYNC_001",
        "A field is invalid.",
    )
    TOO_LARGE = _same(StatusCode.INVALID_ARGUMENT, 413, "PAYLOAD_TOO_LARGE", "The request is too large.")
    SESSION_NOT_FOUND = Row(
        StatusCode.NOT_FOUND, 404, "SESSION_NOT_FOUND", "NOT_FOUND", "NOT_FOUND", "There is no such session."
    )
    NOT_FOUND = _same(StatusCode.NOT_FOUND, 404, "NOT_FOUND", "There is no such thing.")
    EMAIL_REGISTERED = _same(StatusCode.ALREADY_EXISTS, 409, "CONFLICT", "This email is registered already.")
    IDENTITY_TAKEN = _same(StatusCode.ALREADY_EXISTS, 409, "CONFLICT", "This identity opens another account already.")
    LAST_WAY_IN = _same(StatusCode.FAILED_PRECONDITION, 409, "CONFLICT", "Nothing else would open the account.")
    ALREADY_EXISTS = _same(StatusCode.ALREADY_EXISTS, 409, "CONFLICT", "There is one already.")
    IDEMPOTENCY_CONFLICT = Row(
        StatusCode.ABORTED,
        409,
        "IDEMPOTENCY_CONFLICT",
        "CONFLICT",
        "SYNC_003",
        "The idempotency key was used for a different request.",
    )
    SYNC_CONFLICT = Row(
        StatusCode.ABORTED, 409, "SYNC_CONFLICT", "CONFLICT", "SYNC_004", "The conflict was decided already."
    )
    ATOMIC_GROUP = Row(
        StatusCode.ABORTED,
        409,
        "SYNC_CONFLICT",
        "CONFLICT",
        "SYNC_004",
        "Another change of its atomic group could not be applied.",
    )
    RESYNC_REQUIRED = _same(
        StatusCode.FAILED_PRECONDITION, 410, "RESYNC_REQUIRED", "The cursor is too old; start again without one."
    )
    VERSION_MISMATCH = Row(
        StatusCode.FAILED_PRECONDITION,
        400,
        "VERSION_MISMATCH",
        "VERSION_MISMATCH",
        "SYNC_005",
        "This version is not supported here; update the app.",
    )
    UPLOAD_NOT_FOUND = _same(StatusCode.NOT_FOUND, 404, "UPLOAD_001", "There is no such upload; start a new one.")
    UPLOAD_FORBIDDEN = _same(StatusCode.PERMISSION_DENIED, 403, "UPLOAD_001", "This is somebody else's upload.")
    UPLOAD_EXPIRED = _same(
        StatusCode.FAILED_PRECONDITION, 410, "UPLOAD_003", "The upload has expired; start a new one."
    )
    CHUNK_CHECKSUM = _same(
        StatusCode.INVALID_ARGUMENT, 400, "UPLOAD_002", "The bytes are not those of the checksum; send them again."
    )
    CHUNKS_MISSING = Row(
        StatusCode.FAILED_PRECONDITION,
        400,
        "VALIDATION_FAILED",
        "INVALID_REQUEST",
        "SYNC_002",
        "Chunks are missing; the status lists them.",
    )
    FILE_CHECKSUM = _same(
        StatusCode.INVALID_ARGUMENT, 400, "UPLOAD_002", "The file is not what file_hash says; start a new upload."
    )
    UPLOAD_COMPLETED = _same(StatusCode.FAILED_PRECONDITION, 409, "CONFLICT", "The upload has become a file.")
    LINK_EXPIRED = _same(StatusCode.FAILED_PRECONDITION, 410, "LINK_EXPIRED", "The link is not good any more.")
    RANGE_NOT_SATISFIABLE = _same(StatusCode.OUT_OF_RANGE, 416, "RANGE_NOT_SATISFIABLE", "The file has no such bytes.")
    SIGNATURE_INVALID = Row(
        StatusCode.UNAUTHENTICATED,
        401,
        "AUTH_UNAUTHORIZED",
        "UNAUTHORIZED",
        "AUTH_001",
        "The event does not prove who has sent it.",
    )
    # An app that knows nothing of second factors still shows that this sign-in did not do, and the message why.
    SECOND_FACTOR_REQUIRED = Row(
        StatusCode.UNAUTHENTICATED,
        401,
        "INVALID_CREDENTIALS",
        "INVALID_CREDENTIALS",
        "AUTH_001",
        "Signing in takes a code of the second factor as well.",
    )
    SECOND_FACTOR_INVALID = Row(
        StatusCode.UNAUTHENTICATED,
        401,
        "INVALID_CREDENTIALS",
        "INVALID_CREDENTIALS",
        "AUTH_001",
        "The code is wrong, or was used before.",
    )
    SECOND_FACTOR_ENABLED = _same(
        StatusCode.FAILED_PRECONDITION, 409, "CONFLICT", "The account has a second factor already."
    )
    NOT_A_GUEST = _same(StatusCode.FAILED_PRECONDITION, 409, "CONFLICT", "This is no guest, or none any more.")
    SYNC_IN_PROGRESS = _same(
        StatusCode.FAILED_PRECONDITION,
        409,
        "CONFLICT",
        "A synchronization is already in progress. Please wait or check status.",
    )
    RATE_LIMITED = Row(
        StatusCode.RESOURCE_EXHAUSTED,
        429,
        "RATE_LIMITED",
        "RATE_LIMIT",
        "RATE_001",
        "Too many requests; try again later.",
    )
    INTERNAL = _same(StatusCode.INTERNAL, 500, "INTERNAL_ERROR", "Something went wrong on our side.")
    UNAVAILABLE = _same(StatusCode.UNAVAILABLE, 503, "UNAVAILABLE", "A part of the server is not available; try again.")
    DEADLINE_EXCEEDED = _same(StatusCode.DEADLINE_EXCEEDED, 504, "DEADLINE_EXCEEDED", "The call took too long.")
    CANCELLED = _same(StatusCode.CANCELLED, 499, "CANCELLED", "The caller went away.")
    UNIMPLEMENTED = _same(StatusCode.UNIMPLEMENTED, 404, "NOT_FOUND", "There is no such method.")

    @property
    def row(self) -> Row:
        """The reason's line of the table."""
        return self.value

    def code_in(self, dialect: int) -> str:
        """The code that readers of `dialect` (satchel.options.v1.Dialect) know this reason by."""
        if dialect == options.DIALECT_FLOW:
            return self.row.flow
        return self.row.mobile if dialect == options.DIALECT_MOBILE else self.row.core


@dataclass(frozen=True)
class Violation:
    """What is wrong with one field."""

    field: str
    """Path of the field in snake_case, such as sessions[3].duration."""
    reason: str
    """Upper snake case, stable: REQUIRED, OUT_OF_RANGE, INVALID_FORMAT, INVALID_TYPE, TOO_LONG and so on."""


def _sayable(text: str) -> str:
    """A text that may hold what a phone called a field, without what no answer and no database can hold."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "?")


class Failure(Exception):
    """A refusal in domain words; the interceptor turns it into a status, once."""

    def __init__(
        self,
        reason: Reason,
        message: str = "",
        *,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        """`message` is for people, at most 500 characters; `retry_after` is seconds, only where waiting helps."""
        self.reason = reason
        self.message = _sayable(message or reason.row.message)[:MAX_MESSAGE_CHARS]
        self.violations = tuple(Violation(_sayable(one.field), one.reason) for one in violations[:MAX_VIOLATIONS])
        self.retry_after = retry_after
        super().__init__(f"{reason.name}: {self.message}")

    def within(self, prefix: str) -> Failure:
        """The same refusal with every field named below `prefix`, such as sessions[3]."""
        violations = [
            Violation(f"{prefix}.{one.field}" if one.field else prefix, one.reason) for one in self.violations
        ]
        named = bool(self.violations and self.violations[0].field)
        message = f"{prefix}.{self.message}" if named else f"{prefix}: {self.message}"
        return Failure(self.reason, message, violations=violations, retry_after=self.retry_after)


def kept(failure: Failure) -> dict[str, Any]:
    """The refusal as JSON, for an answer that is repeated. Pairs with recalled."""
    return {
        "reason": failure.reason.name,
        "message": failure.message,
        "violations": [[one.field, one.reason] for one in failure.violations],
    }


def recalled(said: Mapping[str, Any]) -> Failure:
    """The refusal that `kept` was given."""
    violations = [Violation(field, reason) for field, reason in said["violations"]]
    return Failure(Reason[said["reason"]], said["message"], violations=violations)


def missing(field: str) -> Failure:
    """The refusal of a request without `field`."""
    return Failure(Reason.FIELD_MISSING, f"{field}: is required", violations=[Violation(field, "REQUIRED")])


def invalid(field: str, why: str, reason: str = "OUT_OF_RANGE") -> Failure:
    """The refusal of a value; `why` goes on after the field's name. An empty `field` is the item itself."""
    message = f"{field}: {why}" if field else why
    return Failure(Reason.FIELD_INVALID, message, violations=[Violation(field, reason)])


def camel(path: str) -> str:
    """A snake_case field path in camelCase: exercise_id becomes exerciseId."""
    head, *rest = path.split("_")
    return head + "".join(word[:1].upper() + word[1:] for word in rest)


def rest_body(failure: Failure, dialect: int, *, camel_case: bool, request_id: str, now: datetime) -> str:
    """The finished JSON body of a REST answer, ASCII only since it travels in a header."""
    rename = camel if camel_case else str
    message = failure.message
    for violation in failure.violations:
        message = message.replace(violation.field, rename(violation.field), 1)
    if dialect == options.DIALECT_DETAIL:
        return json.dumps({"detail": message})
    details = [{"field": rename(one.field), "reason": one.reason} for one in failure.violations]
    if failure.reason.row.http == 401 and not details and failure.reason is not Reason.INVALID_CREDENTIALS:
        details = [{"field": "Authorization", "reason": failure.reason.name}]
    return json.dumps(
        {
            "error": {
                "code": failure.reason.code_in(dialect),
                "message": message,
                "details": details,
                "requestId": f"req_{request_id}",
                "timestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        }
    )


def rpc_status(failure: Failure, *, request_id: str) -> status_pb2.Status:
    """The google.rpc.Status of a gRPC answer: ErrorInfo, RequestInfo and, where they apply, BadRequest, RetryInfo."""
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(reason=failure.reason.name, domain=ERROR_DOMAIN),
        error_details_pb2.RequestInfo(request_id=f"req_{request_id}"),
    ]
    if failure.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=one.field, reason=one.reason, description=failure.message)
            for one in failure.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if failure.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(failure.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code_pb2.Code.Value(failure.reason.row.code.name), message=failure.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
