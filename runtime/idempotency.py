"""Owns reading a call's idempotency key: where it stands, and what the call that bears it asks for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import orjson
from google.api import httpbody_pb2
from google.protobuf.message import Message

from runtime.call import IdempotencyKey
from runtime.documents import parse
from runtime.errors import invalid

MAX_KEY_CHARS: Final = 255
_PRINTABLE: Final = re.compile(r"[\x21-\x7e]+")


def idempotency_key_of(metadata: Mapping[str, str], request: Any) -> IdempotencyKey | None:
    """The key that a call carries in its headers or inside its request; None for a call without one.

    Raises Failure: FIELD_INVALID for a key that is too long or cannot be printed, MALFORMED_REQUEST.
    """
    key = metadata.get("idempotency-key") or metadata.get("x-idempotency-key") or _key_inside(request)
    if not key:
        return None
    if len(key) > MAX_KEY_CHARS:
        raise invalid("idempotency_key", f"is longer than {MAX_KEY_CHARS} characters", "TOO_LONG")
    if not _PRINTABLE.fullmatch(key):
        raise invalid("idempotency_key", "must be printable ASCII without spaces", "INVALID_FORMAT")
    return IdempotencyKey(key=key, digest=_digest(request))


def _key_inside(request: Any) -> str:
    """The key that the request itself names, in its field or in its JSON document."""
    document = _document(request)
    if b'"idempotency_key"' not in document:
        return str(getattr(request, "idempotency_key", ""))
    parsed = parse(document)
    key = parsed.get("idempotency_key") if isinstance(parsed, dict) else None
    if key is not None and not isinstance(key, str):
        raise invalid("idempotency_key", "must be a string", "INVALID_TYPE")
    return key or ""


def _document(request: Any) -> bytes:
    document = getattr(request, "document", None)
    return document.data if isinstance(document, httpbody_pb2.HttpBody) else b""


def _digest(request: Message) -> bytes:
    """sha256 of what the request asks for, the same for the same content in another order or spacing."""
    document = _document(request)
    if document:
        with suppress(orjson.JSONDecodeError, orjson.JSONEncodeError):  # what cannot be read is compared as it is
            document = orjson.dumps(orjson.loads(document), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(document).digest()
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
