"""Owns recordings that are handed over as activities: a file, and a record of what it says, each once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from runtime.call import Principal
from runtime.errors import Failure, Reason
from services.uploads.activity_summary import Kind, record_of
from services.uploads.uploads_domain import Asked
from services.uploads.wholes_domain import ACTIVITY

if TYPE_CHECKING:
    from services.uploads.activity_parsing import ActivityParsing
    from services.uploads.digests import Digests
    from services.uploads.finalizing_domain import Finalizer
    from services.uploads.links import Links
    from services.uploads.outbox_domain import Outbox
    from services.uploads.streamed_domain import Streamed
    from services.uploads.uploads_domain import Upload, Uploads
    from services.uploads.uploads_store import UploadStore
    from services.uploads.wholes_domain import Wholes

_MIME_TYPES: Final = {
    Kind.FIT: "application/vnd.ant.fit",
    Kind.GPX: "application/gpx+xml",
    Kind.TCX: "application/vnd.garmin.tcx+xml",
}


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording as it was handed over."""

    filename: str
    """Empty when the phone gave it no name."""
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Added:
    """What became of a recording."""

    upload: Upload
    file_url: str
    data: dict[str, Any]
    """Of the record."""
    created: bool
    """False: it was here before, and nothing has changed."""


class Activities:
    """Takes recordings."""

    def __init__(
        self,
        store: UploadStore,
        uploads: Uploads,
        wholes: Wholes,
        digests: Digests,
        streamed: Streamed,
        finalizer: Finalizer,
        parsing: ActivityParsing,
        links: Links,
        outbox: Outbox,
    ) -> None:
        self._store = store
        self._uploads = uploads
        self._wholes = wholes
        self._digests = digests
        self._streamed = streamed
        self._finalizer = finalizer
        self._parsing = parsing
        self._links = links
        self._outbox = outbox

    async def add(self, caller: Principal, recording: Recording) -> Added:
        """Stores the recording as a file and what it says as a record, unless it was handed over before.

        Raises Failure: FIELD_INVALID for what is no recording, TOO_LARGE, TIER_LIMIT, UNAVAILABLE.
        """
        digest = await self._digests.of(recording.data)
        known = await self._store.activity(caller.user_id, digest, len(recording.data))
        if known is not None:
            return Added(upload=known, file_url=self._links.url(known), data=known.activity or {}, created=False)
        summary = await self._parsing.summarize(recording.data)
        asked = Asked(
            filename=recording.filename or f"activity.{summary.kind}",
            total_size=len(recording.data),
            mime_type=_MIME_TYPES[summary.kind],
            file_hash=digest.hex(),
        )
        data = record_of(summary)
        file = await self._wholes.keep(caller, asked, recording.data, data)
        if file is not None:
            return Added(upload=file, file_url=self._links.url(file), data=data, created=True)
        # The same bytes are a file that was no activity, or somebody is sending them in chunks.
        upload = await self._uploads.start(caller, asked)
        if upload.status == "active":
            await self._streamed.content(upload, 0, _whole(recording.data))
        if upload.status != "completed":
            await self._finalizer.finalize(caller, str(upload.id))
        return await self._note(upload, data)

    async def _note(self, upload: Upload, data: dict[str, Any]) -> Added:
        async with self._store.hold(upload.id) as held:
            file = held.upload
            if file is None or file.status != "completed":  # removed in between
                raise Failure(Reason.UNAVAILABLE, retry_after=1)
            created = file.activity is None
            if created:
                await held.set_activity(data)
                await self._outbox.tell(held.connection, file, ACTIVITY, data)
        self._outbox.look()
        return Added(upload=file, file_url=self._links.url(file), data=file.activity or data, created=created)


def own_id(caller: Principal, user_id: str) -> None:
    """Raises Failure(FORBIDDEN) unless `user_id` is the caller's."""
    if user_id.lower() != str(caller.user_id):
        raise Failure(Reason.FORBIDDEN)


async def _whole(data: bytes) -> AsyncIterator[memoryview]:
    yield memoryview(data)
