"""Owns the shapes of app versions: domain values and messages."""

from __future__ import annotations

from satchel.sessions.v1 import meta_pb2 as pb

from runtime.clock import to_timestamp
from services.sessions.meta_domain import AppVersion, Standing


def standing_response(standing: Standing) -> pb.GetAppVersionResponse:
    """How the caller's version stands."""
    app = standing.app
    return pb.GetAppVersionResponse(
        platform=app.platform,
        latest_version=app.latest,
        min_supported_version=app.minimum,
        force_update=standing.force_update,
        update_available=standing.update_available,
        store_url=app.store_url,
        updated_at=to_timestamp(app.update_time),
    )


def app_version_response(app: AppVersion) -> pb.UpdateAppVersionResponse:
    """What was set."""
    return pb.UpdateAppVersionResponse(
        platform=app.platform,
        latest_version=app.latest,
        min_supported_version=app.minimum,
        store_url=app.store_url,
        force=app.force,
        updated_at=to_timestamp(app.update_time),
    )
