"""Owns what an administrator sees of the uploads that are on their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from runtime.call import Principal
from services.uploads.uploads_domain import Progress, Upload

if TYPE_CHECKING:
    from services.uploads.active_store import ActiveUploadStore


@dataclass(frozen=True, kw_only=True)
class ActiveUpload:
    """An upload that is on its way, and how far it has come."""

    upload: Upload
    progress: Progress


class ActiveUploads:
    """The uploads of a tenant's users that are on their way."""

    def __init__(self, store: ActiveUploadStore, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    async def page(
        self, caller: Principal, limit: int, before: tuple[datetime, UUID] | None
    ) -> tuple[Sequence[ActiveUpload], int]:
        """Those of the caller's tenant, newest first, below `before` (the last one of a page); and how many in all."""
        return await self._store.page(caller.tenant_id, self._now(), limit, before)
