"""Owns how the ids that phones choose are read."""

from __future__ import annotations

import re
from typing import Any, Final

from runtime.errors import invalid, missing

# Python's own reader also takes braces, urn: and underscores, which no other part of the way would.
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def parse_id(field: str, text: Any) -> str:
    """An id as it was sent, since the phone looks for its record under this very spelling.

    Raises Failure: FIELD_MISSING, FIELD_INVALID.
    """
    if text is None or text == "":
        raise missing(field)
    if not isinstance(text, str):
        raise invalid(field, "must be a string", "INVALID_TYPE")
    if not _ID.fullmatch(text):
        raise invalid(field, "must be a UUID, or 1 to 64 letters, digits, hyphens and underscores", "INVALID_FORMAT")
    return text


def parse_uuid(field: str, text: Any) -> str:
    """A UUID (RFC 9562) in lower case. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
    if text is None or text == "":
        raise missing(field)
    if not isinstance(text, str) or not _UUID.fullmatch(text):
        raise invalid(field, "must be a UUID", "INVALID_FORMAT")
    return text.lower()


def shown_id(text: Any) -> str:
    """What was sent as an id, as far as an answer can show it; empty for what is no text."""
    return text[:100].encode("utf-8", "replace").decode().replace("\x00", "") if isinstance(text, str) else ""
