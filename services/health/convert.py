"""Owns the two shapes of the mesh's state: domain values and messages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from satchel.health.v1 import health_pb2 as pb

from runtime.clock import to_timestamp
from services.health.domain import Finding, status_of


def mesh_response(findings: Sequence[Finding], now: datetime) -> pb.CheckMeshResponse:
    """The state of the mesh."""
    return pb.CheckMeshResponse(
        status=status_of(findings),
        parts=[
            pb.Part(name=one.name, state=one.state, latency_ms=one.latency_ms, needed=one.needed) for one in findings
        ],
        server_time=to_timestamp(now),
    )
