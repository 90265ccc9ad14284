"""Owns how an event proves that a store sent it: a signature over its bytes, or a word that only the store knows."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from runtime.errors import Failure, Reason, Violation

SIGNATURE: Final = "X-Satchel-Signature"
AUTHORIZATION: Final = "Authorization"
# How far the sender's clock and the way may put its time and ours apart; an event that was overheard is no use later.
TOLERANCE_SECONDS: Final = 300
_MAX_HEADER_CHARS: Final = 1024


def check_signature(header: str, body: bytes, secrets: Sequence[str], now: datetime) -> None:
    """Raises Failure: SIGNATURE_INVALID unless `header` signs `body` with one of `secrets`, and did so just now.

    NOT_FOUND when there are no secrets.
    """
    if not secrets:
        raise Failure(Reason.NOT_FOUND, "No events are taken here: SATCHEL_WEBHOOK_SECRET is not set.")
    if not header:
        raise _refused(SIGNATURE, "REQUIRED", "is required")
    time, signatures = _parsed(header)
    expected = [hmac.new(secret.encode(), f"{time}.".encode() + body, hashlib.sha256).hexdigest() for secret in secrets]
    # Each with each, whatever the ones before have said: how long it takes tells nothing of a secret.
    matches = [_same(signature, one) for signature in signatures for one in expected]
    if not any(matches):
        raise _refused(SIGNATURE, "SIGNATURE_INVALID", "is not the one of this body")
    if abs(now.timestamp() - int(time)) > TOLERANCE_SECONDS:
        raise _refused(SIGNATURE, "SIGNATURE_EXPIRED", "is more than five minutes old, or of the future")


def check_authorization(header: str, values: Sequence[str]) -> None:
    """Raises Failure: SIGNATURE_INVALID unless `header` is one of `values`, NOT_FOUND when there are none."""
    if not values:
        raise Failure(Reason.NOT_FOUND, "No events are taken here: SATCHEL_REVENUECAT_AUTHORIZATION is not set.")
    if not header:
        raise _refused(AUTHORIZATION, "REQUIRED", "is required")
    matches = [_same(header, value) for value in values]
    if not any(matches):
        raise _refused(AUTHORIZATION, "SIGNATURE_INVALID", "is not the one that was agreed on")


def _parsed(header: str) -> tuple[str, list[str]]:
    """The time and the signatures of t=...,v1=...; several signatures while a secret is replaced."""
    parts = [part.strip().partition("=") for part in header[:_MAX_HEADER_CHARS].split(",")]
    times = [value for name, _, value in parts if name == "t"]
    if len(times) != 1 or not (times[0].isascii() and times[0].isdecimal() and len(times[0]) <= 12):
        raise _refused(SIGNATURE, "INVALID_FORMAT", "is not t=<unix time>,v1=<hex>")
    return times[0], [value.lower() for name, _, value in parts if name == "v1"]


def _same(said: str, expected: str) -> bool:
    return hmac.compare_digest(said.encode("utf-8", "replace"), expected.encode("utf-8", "replace"))


def _refused(header: str, reason: str, why: str) -> Failure:
    return Failure(Reason.SIGNATURE_INVALID, f"{header}: {why}", violations=[Violation(header, reason)])
