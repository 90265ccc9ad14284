"""Owns what is known of each device: its score, what it last said of itself, and who may know of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, cast
from uuid import UUID

from runtime.call import Principal
from runtime.errors import Failure, Reason, invalid
from runtime.ids import parse_uuid
from services.health.access import tenant_of
from services.health.counts import Counts
from services.health.outcomes_domain import MAX_WORD_CHARS, Said, check_device_id
from services.health.sync_health_metrics import device_score

if TYPE_CHECKING:
    from services.health.devices_store import DeviceStore

Order = Literal["score", "last_sync_at", "device_id"]
ORDERS: Final = ("score", "last_sync_at", "device_id")
MAX_VERSIONS: Final = 50
_NOBODY: Final = UUID(int=0)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device of a user."""

    user_id: UUID
    device_id: str
    counts: Counts
    """Since it was first seen."""
    last_sync_time: datetime | None
    said: Said


@dataclass(frozen=True, kw_only=True)
class ScoredDevice:
    """A device and how well it does."""

    device: Device
    score: float


@dataclass(frozen=True, kw_only=True)
class VersionCount:
    """How many devices run a version."""

    platform: str
    app_version: str
    devices: int


@dataclass(frozen=True, kw_only=True)
class Devices:
    """All of a tenant's."""

    total: int
    versions: Sequence[VersionCount]
    """Those of most devices first."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a page of a list ends."""

    order: str
    as_of: datetime
    """When the first page was read: all pages go by the scores of that moment."""
    score: float
    last_sync_time: datetime | None
    user_id: UUID
    device_id: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """A part of a tenant's devices."""

    devices: Sequence[ScoredDevice]
    next_place: Place | None
    """Where the next page begins; None: there is none."""
    all: Devices


class KnownDevices:
    """Shows devices, and forgets them."""

    def __init__(self, store: DeviceStore, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    async def get(self, caller: Principal, device_id: str) -> ScoredDevice:
        """The caller's own device; for an administrator any of the tenant. Raises Failure: FIELD_INVALID, NOT_FOUND."""
        check_device_id("device_id", device_id)
        user_id = None if caller.role == "admin" else caller.user_id
        device = await self._store.find(caller.tenant_id, device_id, user_id)
        if device is None:
            raise Failure(Reason.NOT_FOUND, "There is no such device.")
        return ScoredDevice(device=device, score=device_score(device.counts, device.last_sync_time, self._now()))

    async def page(
        self, caller: Principal, tenant_id: int, *, order: str, app_version: str, limit: int, after: Place | None
    ) -> Page:
        """Up to `limit` of the tenant's devices behind a place. Raises Failure: FIELD_INVALID, FORBIDDEN."""
        tenant = tenant_of(caller, tenant_id)
        order = order or ORDERS[0]
        if order not in ORDERS:
            raise invalid("order_by", f"must be {', '.join(ORDERS[:-1])} or {ORDERS[-1]}", "INVALID_FORMAT")
        if len(app_version) > MAX_WORD_CHARS or "\x00" in app_version:
            raise invalid("app_version", f"must be at most {MAX_WORD_CHARS} characters", "TOO_LONG")
        if after is not None and after.order != order:
            raise invalid("page_token", "is one of another order", "INVALID_FORMAT")
        start = after or Place(
            order=order, as_of=self._now(), score=0, last_sync_time=None, user_id=_NOBODY, device_id=""
        )
        found = await self._store.page(tenant, cast(Order, order), app_version, limit + 1, start, first=after is None)
        return Page(
            devices=[ScoredDevice(device=device, score=score) for device, score in found[:limit]],
            next_place=_behind(start, *found[limit - 1]) if len(found) > limit else None,
            all=await self._store.versions(tenant, MAX_VERSIONS),
        )

    async def erase(self, user_id: str) -> tuple[int, int]:
        """Forgets the devices of a user; returns how many now, and in all.

        Raises Failure: FIELD_MISSING, FIELD_INVALID.
        """
        return await self._store.erase(UUID(parse_uuid("user_id", user_id)))


def _behind(start: Place, device: Device, score: float) -> Place:
    return Place(
        order=start.order,
        as_of=start.as_of,
        score=score,
        last_sync_time=device.last_sync_time,
        user_id=device.user_id,
        device_id=device.device_id,
    )
