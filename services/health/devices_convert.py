"""Owns the two shapes of devices and of places in their list: domain values and messages."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from satchel.health.v1 import health_pb2 as pb

from runtime.clock import EARLIEST, format_time, to_timestamp
from runtime.errors import invalid
from runtime.paging import decode_token, encode_token
from services.health.devices_domain import Page, Place, ScoredDevice
from services.health.sync_health_metrics import avg_sync_duration_ms, rounded

# What a seed shows as a number is one of 32 bits.
_MOST: Final = 2**31 - 1
_NEVER: Final = "-"


def device_response(scored: ScoredDevice) -> pb.GetDeviceHealthResponse:
    """A device and how well it does."""
    device, counts, said = scored.device, scored.device.counts, scored.device.said
    return pb.GetDeviceHealthResponse(
        device_id=device.device_id,
        health_score=rounded(scored.score),
        total_syncs=min(counts.syncs, _MOST),
        failed_syncs_count=min(counts.failed_syncs, _MOST),
        avg_sync_duration_ms=rounded(avg_sync_duration_ms(counts)),
        conflicts_encountered=min(counts.conflicts, _MOST),
        last_sync_at=to_timestamp(device.last_sync_time) if device.last_sync_time else None,
        network_type=said.network_type or "",
        app_version=said.app_version or "",
        os_version=said.os_version or "",
        platform=said.platform or "",
        clock_skew_ms=None if said.clock_skew_us is None else said.clock_skew_us / 1000,
        user_id=str(device.user_id),
    )


def page_response(page: Page) -> pb.ListDeviceHealthResponse:
    """A part of a tenant's devices."""
    return pb.ListDeviceHealthResponse(
        devices=[device_response(one) for one in page.devices],
        next_page_token=token_of(page.next_place) if page.next_place else "",
        total=page.all.total,
        app_versions=[
            pb.AppVersionCount(platform=one.platform, app_version=one.app_version, devices=one.devices)
            for one in page.all.versions
        ],
    )


def token_of(place: Place) -> str:
    """A place as a token. Pairs with place_from_token."""
    latest = format_time(place.last_sync_time) if place.last_sync_time else _NEVER
    return encode_token(place.as_of, f"{place.order} {place.score!r} {latest} {place.user_id} {place.device_id}")


def place_from_token(token: str) -> Place | None:
    """What token_of was given; None for an empty token. Raises Failure(FIELD_INVALID)."""
    decoded = decode_token(token)
    if decoded is None:
        return None
    as_of, text = decoded
    try:
        order, score, latest, user_id, device_id = text.split(" ")
        place = Place(
            order=order,
            as_of=_moment(format_time(as_of)),
            score=float(score),
            last_sync_time=None if latest == _NEVER else _moment(latest),
            user_id=UUID(user_id),
            device_id=device_id,
        )
        if not math.isfinite(place.score):
            raise ValueError(text)
        return place
    except (OverflowError, ValueError):
        raise invalid("page_token", "is not one that this list gave", "INVALID_FORMAT") from None


def _moment(text: str) -> datetime:
    time = datetime.fromisoformat(text).astimezone(UTC)
    if time.year < EARLIEST.year:
        raise ValueError(text)
    return time
