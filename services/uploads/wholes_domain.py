"""Owns recordings that come in one piece: their bytes first, then one transaction that makes them a file."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from runtime.call import Principal
from runtime.errors import Failure
from services.uploads.blobs import BlobError
from services.uploads.finalizing_domain import DOMAIN as FILE
from services.uploads.finalizing_domain import record_of
from services.uploads.uploads_domain import Asked, Upload, Uploads, kept

if TYPE_CHECKING:
    from uuid import UUID

    from runtime.outcomes import Outcomes
    from services.uploads.blobs import Blobs
    from services.uploads.links import Links
    from services.uploads.outbox_domain import Outbox
    from services.uploads.uploads_store import UploadStore

ACTIVITY: Final = "activity"


class Wholes:
    """Keeps recordings that are all there, and known to be what they are said to be."""

    def __init__(
        self, store: UploadStore, blobs: Blobs, uploads: Uploads, links: Links, outbox: Outbox, *, outcomes: Outcomes
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._uploads = uploads
        self._links = links
        self._outbox = outbox
        self._outcomes = outcomes

    async def keep(self, caller: Principal, asked: Asked, content: bytes, activity: dict[str, Any]) -> Upload | None:
        """Makes `content` a file, with a record of its own and one of what it says.

        None: the same bytes are a file already, or on their way by another door, and nothing was stored. Who dies in
        between leaves bytes that no row knows, and these are swept away. Raises Failure: as Uploads.start; UNAVAILABLE.
        """
        wanted = self._uploads.wanted(caller, asked)
        now = wanted.create_time
        file = replace(wanted, status="completed", finish_time=now, activity=activity)
        await kept(self._blobs.put(file.id, content))
        try:
            async with self._store.start(caller.user_id) as starting:
                same = await self._uploads.admit(starting, wanted, caller)
                if same is None:
                    async with starting.in_one_trip():
                        await starting.insert(file)
                        await self._outbox.tell(starting.connection, file, FILE, record_of(file, self._links, now))
                        await self._outbox.tell(starting.connection, file, ACTIVITY, activity)
        except Failure:  # of anything else it is not known whether it is a file now
            await self._drop(file.id)
            raise
        if same is not None:
            await self._drop(file.id)
            return None
        self._outcomes.uploaded(file, file.total_size)
        self._outbox.look()
        return file

    async def _drop(self, id: UUID) -> None:
        with suppress(BlobError):  # what stays is swept away
            await self._blobs.remove(id)
