"""Owns sessions recorded on a machine: what counts as one, and in which domain it is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from runtime.call import IdempotencyKey, Principal
from runtime.clock import canonical_time, parse_time, plausible
from runtime.errors import Failure, invalid, kept, recalled
from runtime.ids import parse_uuid
from services.sessions.batches import capture, named
from services.sessions.records_domain import Draft, Key, Resolution, merge
from services.sessions.schemas import Schemas, encode

if TYPE_CHECKING:
    from services.sessions.records_store import RecordStore


# A machine with a schema of its own is a domain; every other one shares this.
OTHER_DEVICES: Final = "session"
DEVICES: Final = ("bike", "rower", "treadmill")
_UPLOAD: Final = "device_sessions.batch_upload"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A session as a phone sent it, before it is checked."""

    id: Any
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What became of one item."""

    client_session_id: str
    """As it was sent."""
    status: str
    """created, duplicate or error."""
    session_id: str
    """Empty for an error."""
    failure: Failure | None


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """What became of a batch, item by item in the order of the request."""

    receipts: list[Receipt]
    counts: Counter[str]
    """By status."""
    server_time: datetime


class DeviceSessions:
    """Recorded sessions as typed views on records; what is stored once is never overwritten."""

    def __init__(self, store: RecordStore, schemas: Schemas, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._schemas = schemas
        self._now = now

    async def upload(
        self, caller: Principal, recordings: Sequence[Recording | Failure], key: IdempotencyKey | None
    ) -> Uploaded:
        """Stores each session that is not there yet; a bad item is only its own receipt's error."""
        now = self._now()
        drafts = named(capture(lambda recording: self._draft(recording, now), recordings), "sessions")
        good = [draft for draft in drafts if isinstance(draft, Draft)]
        statuses: list[str] = []
        if good:
            keys = [draft.key for draft in good]
            async with self._store.feed(caller.user_id, keys, rpc=_UPLOAD, idempotency=key, now=now) as feed:
                if feed.answer is not None:
                    # What was refused then is refused again, though the clock may have made it good since.
                    statuses, refused = feed.answer["statuses"], feed.answer["refused"]
                    drafts = [
                        recalled(refused[str(index)]) if str(index) in refused else draft
                        for index, draft in enumerate(drafts)
                    ]
                else:
                    merged = merge(feed.known, feed.position, good, Resolution.FIRST_WINS)
                    statuses = [str(outcome) for outcome in merged.outcomes]
                    await feed.write(merged.writes, merged.position, now)
                    refused = {str(i): kept(one) for i, one in enumerate(drafts) if isinstance(one, Failure)}
                    await feed.keep(_UPLOAD, key, {"statuses": statuses, "refused": refused}, now)
        return _uploaded(recordings, drafts, statuses, now)

    def _draft(self, recording: Recording, now: datetime) -> Draft:
        id = parse_uuid("client_session_id", recording.id)
        data = recording.data
        device = data.get("device_type")
        domain = device if isinstance(device, str) and device in DEVICES else OTHER_DEVICES
        self._schemas.check(domain, data)
        started = plausible("started_at", parse_time("started_at", data["started_at"]), now)
        data["started_at"] = canonical_time(data["started_at"], started)
        if "ended_at" in data:
            ended = plausible("ended_at", parse_time("ended_at", data["ended_at"]), now)
            if ended < started:
                raise invalid("ended_at", "is before started_at")
            data["ended_at"] = canonical_time(data["ended_at"], ended)
        return Draft(key=Key(domain, id), data=data, raw=encode(data), happen_time=started)


def _uploaded(
    recordings: Sequence[Recording | Failure],
    drafts: Sequence[Draft | Failure],
    statuses: Sequence[str],
    now: datetime,
) -> Uploaded:
    remaining = iter(statuses)
    receipts = [
        Receipt(
            client_session_id=_shown_id(recording),
            status="error" if isinstance(draft, Failure) else next(remaining),
            session_id="" if isinstance(draft, Failure) else draft.key.id,
            failure=draft if isinstance(draft, Failure) else None,
        )
        for recording, draft in zip(recordings, drafts, strict=True)
    ]
    return Uploaded(receipts=receipts, counts=Counter(receipt.status for receipt in receipts), server_time=now)


def _shown_id(recording: Recording | Failure) -> str:
    id = recording.id if isinstance(recording, Recording) else None
    if not isinstance(id, str):
        return ""
    return id[:100] if id.isascii() else id[:100].encode("utf-8", "replace").decode()
