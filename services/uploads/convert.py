"""Owns the two shapes of upload limits: domain values and messages."""

from __future__ import annotations

from satchel.uploads.v1 import uploads_pb2 as pb

from services.uploads.domain import UploadLimits


def limits_response(limits: UploadLimits) -> pb.GetUploadLimitsResponse:
    """What this server takes."""
    return pb.GetUploadLimitsResponse(
        chunk_size=limits.chunk_size,
        expires_after_seconds=limits.expires_after_seconds,
        types=[pb.TypeLimit(name=one.name, mime_types=one.mime_types, max_size=one.max_size) for one in limits.types],
    )
