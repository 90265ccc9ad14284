"""Owns the two shapes of a user's totals: domain values and messages."""

from __future__ import annotations

from typing import Any

from satchel.sessions.v1 import stats_pb2 as pb

from runtime.clock import to_timestamp
from runtime.documents import struct_from_json, struct_to_json
from services.sessions.stats_domain import TOTALS, Stats


def given_from_pb(message: pb.UpdateStatsRequest) -> dict[str, Any]:
    """The totals that a request gives, and no others; whole numbers as int."""
    given: dict[str, Any] = {}
    for name in TOTALS:
        if message.HasField(name):
            value = getattr(message, name)
            given[name] = int(value) if isinstance(value, float) and value.is_integer() else value
    if message.HasField("extra"):
        given["extra"] = struct_to_json(message.extra)
    return given


def get_response(stats: Stats) -> pb.GetStatsResponse:
    """The answer to a get."""
    return pb.GetStatsResponse(**_values(stats))


def update_response(stats: Stats) -> pb.UpdateStatsResponse:
    """The answer to an update."""
    return pb.UpdateStatsResponse(**_values(stats))


def _values(stats: Stats) -> dict[str, Any]:
    return {
        **stats.totals,
        "extra": struct_from_json(stats.extra),
        "updated_at": to_timestamp(stats.update_time),
        "source": stats.source,
    }
