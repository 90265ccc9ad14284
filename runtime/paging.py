"""Owns the pages of a list: how many items, and where the next one starts."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, TypeVar

from runtime.clock import format_time
from runtime.errors import invalid

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 1000
# A device's id, with what else tells its place.
MAX_ID_CHARS: Final = 500

T = TypeVar("T")


def page_size(asked: int) -> int:
    """The number of items on a page. Raises Failure(FIELD_INVALID) outside 0 to 1000; 0 means 100."""
    if not 0 <= asked <= MAX_SIZE:
        raise invalid("page_size", f"must be 1 to {MAX_SIZE}")
    return asked or DEFAULT_SIZE


def next_token(found: Sequence[T], limit: int, place: Callable[[T], tuple[datetime | None, str]]) -> str:
    """The token of the page after the first `limit` of `found`, which was read one longer; empty when it was not.

    `place` tells of an item when it took place, and its id.
    """
    if len(found) <= limit:
        return ""
    time, id = place(found[limit - 1])
    return encode_token(time, id) if time else ""


def encode_token(time: datetime, id: str) -> str:
    """A token for the page after the item that took place at `time` under `id`. Pairs with decode_token."""
    return base64.urlsafe_b64encode(f"{format_time(time)} {id}".encode()).decode().rstrip("=")


def decode_token(token: str) -> tuple[datetime, str] | None:
    """What encode_token was given; None for an empty token. Raises Failure(FIELD_INVALID)."""
    if not token:
        return None
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
        time, _, id = text.partition(" ")
        if "\x00" in id or len(id) > MAX_ID_CHARS:
            raise ValueError(id)
        return datetime.fromisoformat(time), id
    except (binascii.Error, ValueError):
        raise invalid("page_token", "is not one that a list gave", "INVALID_FORMAT") from None
