"""Owns why a conversation ends: its close codes, and what the phone is told with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import SystemRandom
from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from satchel.sessions.v1 import sync_pb2 as pb

from runtime.errors import Failure, Reason, Violation

BAD_REQUEST: Final = 4400
UNAUTHENTICATED: Final = 4401
IDLE: Final = 4408
UPDATE_NEEDED: Final = 4426
LIMITED: Final = 4429
UNAVAILABLE: Final = 4503
# RFC 6455: going away, and an error of ours.
LIVED: Final = 1001
INTERNAL: Final = 1011

_CODES: Final = {
    Reason.MISSING_BEARER_TOKEN: UNAUTHENTICATED,
    Reason.INVALID_TOKEN: UNAUTHENTICATED,
    Reason.TOKEN_EXPIRED: UNAUTHENTICATED,
    Reason.TOKEN_REVOKED: UNAUTHENTICATED,
    Reason.FORBIDDEN: UNAUTHENTICATED,
    Reason.MALFORMED_REQUEST: BAD_REQUEST,
    Reason.FIELD_MISSING: BAD_REQUEST,
    Reason.FIELD_INVALID: BAD_REQUEST,
    Reason.RESYNC_REQUIRED: BAD_REQUEST,
    Reason.VERSION_MISMATCH: UPDATE_NEEDED,
    Reason.RATE_LIMITED: LIMITED,
    Reason.UNAVAILABLE: UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED: UNAVAILABLE,
}
# Where a stream ends without a word of ours; any other code is our fault.
_REASONS: Final = {
    grpc.StatusCode.OK: Reason.UNAVAILABLE,
    grpc.StatusCode.UNAVAILABLE: Reason.UNAVAILABLE,
    grpc.StatusCode.CANCELLED: Reason.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED: Reason.UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED: Reason.INVALID_TOKEN,
    grpc.StatusCode.PERMISSION_DENIED: Reason.FORBIDDEN,
}
# Seconds after which a phone comes again.
_RETRY_AFTER: Final = (1.0, 5.0)
# RFC 6455: a close frame holds 125 bytes, two of them the code.
_MAX_REASON_BYTES: Final = 123
_DETAILS: Final = "grpc-status-details-bin"
_CAUSES: Final[dict[int, tuple[int, Reason, str]]] = {
    pb.GoAway.CAUSE_DRAINING: (UNAVAILABLE, Reason.UNAVAILABLE, "This server stops; come again."),
    pb.GoAway.CAUSE_IDLE: (IDLE, Reason.DEADLINE_EXCEEDED, "Nothing was heard for too long."),
    pb.GoAway.CAUSE_LIFETIME: (LIVED, Reason.UNAVAILABLE, "The connection has lived its life; come again."),
    pb.GoAway.CAUSE_TOO_SLOW: (IDLE, Reason.DEADLINE_EXCEEDED, "What was sent was not taken in time."),
}


@dataclass(frozen=True, kw_only=True)
class Parting:
    """The end of a conversation that the phone is told of."""

    code: int
    failure: Failure

    @property
    def reason(self) -> str:
        """What the close frame says."""
        return self.failure.message.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")


def refused(failure: Failure) -> Parting:
    """The end of a conversation that was refused."""
    if failure.reason is Reason.UNAVAILABLE and failure.retry_after is None:
        failure = Failure(failure.reason, failure.message, retry_after=_soon())
    return Parting(code=_CODES.get(failure.reason, INTERNAL), failure=failure)


def failure_of(refusal: pb.Refusal) -> Failure:
    """The refusal of a request as a refusal of the whole."""
    reason = Reason.__members__.get(refusal.reason, Reason.INTERNAL)
    violations = [Violation(refusal.field, "")] if refusal.field else []
    retry = refusal.retry_after
    return Failure(
        reason,
        refusal.message,
        violations=violations,
        retry_after=retry.seconds + retry.nanos / 1e9 if refusal.HasField("retry_after") else None,
    )


def idle() -> Parting:
    """The end of a conversation in which the phone said nothing."""
    return _caused(pb.GoAway.CAUSE_IDLE, None)


def draining() -> Parting:
    """The end of every conversation when this process stops."""
    return _caused(pb.GoAway.CAUSE_DRAINING, _soon())


def sent_away(message: pb.GoAway) -> Parting:
    """The end that the stream announces."""
    told = message.reconnect_after
    return _caused(message.cause, told.seconds + told.nanos / 1e9 if message.HasField("reconnect_after") else None)


def stream_ended(
    code: grpc.StatusCode, trailers: Iterable[tuple[str, str | bytes]], limited: Failure | None = None
) -> Parting:
    """The end of a stream with a status; `limited` is its last refusal for the rate, if there was one."""
    failure = _said(trailers)
    if failure is None and code is grpc.StatusCode.INTERNAL:
        # gRPC's own word for a stream that ended under a write. Why is lost; the phone is told when it comes again.
        failure = limited or Failure(Reason.UNAVAILABLE)
    return refused(failure or Failure(_REASONS.get(code, Reason.INTERNAL)))


def _caused(cause: int, retry_after: float | None) -> Parting:
    code, reason, message = _CAUSES.get(cause, _CAUSES[pb.GoAway.CAUSE_DRAINING])
    return Parting(code=code, failure=Failure(reason, message, retry_after=retry_after))


def _soon() -> float:
    """By chance, so that not all phones come back at once."""
    return SystemRandom().uniform(*_RETRY_AFTER)


def _said(trailers: Iterable[tuple[str, str | bytes]]) -> Failure | None:
    """The refusal that a service put into the trailers of its answer."""
    packed = dict(trailers).get(_DETAILS)
    try:
        status = status_pb2.Status.FromString(packed) if isinstance(packed, bytes) else status_pb2.Status()
    except DecodeError:
        return None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    if info.reason not in Reason.__members__:
        return None
    delay = retry.retry_delay
    retry_after = delay.seconds + delay.nanos / 1e9 if retry.HasField("retry_delay") else None
    return Failure(Reason[info.reason], status.message, retry_after=retry_after)
