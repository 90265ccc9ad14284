"""Owns how the UUIDs that phones choose are read."""

from __future__ import annotations

import re
from typing import Any, Final

from runtime.errors import invalid, missing

# Python's own reader also takes braces, urn: and underscores, which no other part of the way would.
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


def parse_uuid(field: str, text: Any) -> str:
    """A UUID (RFC 9562) in lower case. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
    if text is None or text == "":
        raise missing(field)
    if not isinstance(text, str) or not _UUID.fullmatch(text):
        raise invalid(field, "must be a UUID", "INVALID_FORMAT")
    return text.lower()
