"""Owns what the owner of an account sees of its devices, and how one of them is signed out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from runtime import paging
from runtime.call import Principal
from runtime.errors import Failure, Reason
from runtime.ids import parse_uuid
from services.auth.events_domain import Kind, SecurityEvent

if TYPE_CHECKING:
    from services.auth.devices_store import DeviceStore


@dataclass(frozen=True, kw_only=True)
class SignedInDevice:
    """A live sign-in, as its owner sees it."""

    id: UUID
    """Of the sign-in."""
    device_name: str
    method: str
    ip: str
    """Where it was last used."""
    user_agent: str
    create_time: datetime
    last_use_time: datetime
    """When it signed in or refreshed its tokens."""
    expire_time: datetime


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some of an account's devices, the one that was used last first."""

    devices: Sequence[SignedInDevice]
    next_token: str


class Devices:
    """The devices that are signed in to an account."""

    def __init__(self, store: DeviceStore, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    async def page(self, caller: Principal, size: int, token: str) -> Page:
        """The caller's live sign-ins. Raises Failure(FIELD_INVALID)."""
        limit, after = paging.page_size(size), paging.decode_token(token)
        place = (after[0], UUID(parse_uuid("page_token", after[1]))) if after else None
        found = await self._store.page(caller.user_id, limit=limit + 1, after=place, now=self._now())
        return Page(
            devices=found[:limit],
            next_token=paging.next_token(found, limit, lambda one: (one.last_use_time, str(one.id))),
        )

    async def sign_out(self, caller: Principal, id: str) -> int:
        """Ends one of the caller's sign-ins; returns 1, or 0 when it had ended before.

        Raises Failure: FIELD_INVALID, NOT_FOUND (also for somebody else's).
        """
        sign_in_id = UUID(parse_uuid("id", id))
        event = SecurityEvent(
            kind=Kind.SIGNED_OUT, account_id=caller.user_id, sign_in_id=sign_in_id, detail={"scope": "device"}
        )
        ended = await self._store.end(caller.user_id, sign_in_id, self._now(), event)
        if ended is None:
            raise Failure(Reason.NOT_FOUND, "There is no such device.")
        return int(ended)
