"""Owns the shape of an export: JSON lines, sent in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

import orjson
from google.api.httpbody_pb2 import HttpBody

from runtime.clock import format_time
from services.sessions.conflicts_domain import LoggedConflict
from services.sessions.exports_domain import Footer, Header, Item

JSON_LINES: Final = "application/jsonl"
FORMAT: Final = "satchel-export"
FORMAT_VERSION: Final = 1
# What makes a browser keep the answer as a file.
DISPOSITION: Final = ("content-disposition", f'attachment; filename="{FORMAT}.jsonl"')
# A message of this size streams faster than smaller ones and than larger ones.
PIECE_BYTES: Final = 256 * 1024


async def pieces(items: AsyncIterator[Item]) -> AsyncGenerator[HttpBody]:
    """The items as lines, in messages of about 256 KiB."""
    piece = bytearray()
    async for item in items:
        piece += orjson.dumps(_line(item), option=orjson.OPT_APPEND_NEWLINE)
        if len(piece) >= PIECE_BYTES:
            yield HttpBody(content_type=JSON_LINES, data=bytes(piece))
            piece.clear()
    yield HttpBody(content_type=JSON_LINES, data=bytes(piece))


def _line(item: Item) -> dict[str, Any]:
    match item:
        case Header():
            return {
                "format": FORMAT,
                "version": FORMAT_VERSION,
                "user_id": str(item.user_id),
                "export_time": format_time(item.export_time),
            }
        case LoggedConflict():
            return {
                "type": "conflict",
                "id": str(item.id),
                "domain": item.key.domain,
                "mobile_id": item.key.id,
                "server_version": item.server_version,
                "client_version": item.client_version,
                "resolution_strategy": str(item.strategy),
                "resolution_result": item.result,
                "winning_version": str(item.winner),
                "server_data": item.server.data,
                "client_data": item.client.data,
                "server_time": format_time(item.server.time),
                "client_time": format_time(item.client.time),
                "created_at": format_time(item.create_time),
                "resolved_at": None if item.resolve_time is None else format_time(item.resolve_time),
            }
        case Footer():
            return {"end": True, "records": item.records, "conflicts": item.conflicts}
        case _:
            return {
                "type": "record",
                "domain": item.domain,
                "id": item.id,
                "version": item.version,
                "deleted": item.deleted,
                "data": orjson.Fragment(item.raw),
                "update_time": format_time(item.update_time),
            }
