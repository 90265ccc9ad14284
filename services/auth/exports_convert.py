"""Owns the shape of an account's export: JSON lines, sent in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Final

import orjson
from google.api.httpbody_pb2 import HttpBody

from runtime.clock import format_time
from services.auth.accounts import Account
from services.auth.exports_domain import Footer, Header, Item, Line, Passed

JSON_LINES: Final = "application/jsonl"
FORMAT: Final = "satchel-account-export"
FORMAT_VERSION: Final = 1
# What makes a browser keep the answer as a file.
DISPOSITION: Final = ("content-disposition", f'attachment; filename="{FORMAT}.jsonl"')
# A message of this size streams faster than smaller ones and than larger ones.
PIECE_BYTES: Final = 256 * 1024


async def pieces(items: AsyncIterator[Item]) -> AsyncGenerator[HttpBody]:
    """The items as lines, in messages of about 256 KiB."""
    piece = bytearray()
    async for item in items:
        piece += item.lines if isinstance(item, Passed) else _line(item)
        if len(piece) >= PIECE_BYTES:
            yield HttpBody(content_type=JSON_LINES, data=bytes(piece))
            piece.clear()
    yield HttpBody(content_type=JSON_LINES, data=bytes(piece))


def _line(item: Header | Account | Line | Footer) -> bytes:
    return orjson.dumps(_shown(item), default=_text, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_PASSTHROUGH_DATETIME)


def _shown(item: Header | Account | Line | Footer) -> Mapping[str, Any]:
    match item:
        case Header():
            return {
                "format": FORMAT,
                "version": FORMAT_VERSION,
                "user_id": item.user_id,
                "export_time": item.export_time,
            }
        case Account():
            return {
                "type": "account",
                "id": item.id,
                "email": item.email,
                "tenant_id": item.tenant_id,
                "role": item.role,
                "is_guest": item.is_guest,
                "created_at": item.create_time,
                "tier": item.subscription.tier,
                "subscription_status": item.subscription.status,
                "subscription_expires_at": item.subscription.end_time,
                "cancel_at_period_end": item.subscription.cancel_at_period_end,
            }
        case Line():
            # As in the lists: a number beyond 2^53 is another one to many who read JSON.
            named = {"id": str(item.values["id"])} if "id" in item.values else {}
            return {"type": item.type, **item.values, **named}
        case Footer():
            return {"end": True, **item.counts}


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return format_time(value)
    raise TypeError(f"{type(value)} has no place in an export")
