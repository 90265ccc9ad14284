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
from runtime.outcomes import Tally
from services.sessions.batches import capture, named
from services.sessions.changes_domain import Change, Receipt, decide, typed_change
from services.sessions.policies_domain import Policy, Strategy
from services.sessions.records_domain import Key, Prepared

if TYPE_CHECKING:
    from services.sessions.domains import Domains
    from services.sessions.records_store import RecordStore


# A machine with a schema of its own is a domain; every other one shares this.
OTHER_DEVICES: Final = "session"
DEVICES: Final = ("bike", "rower", "treadmill")
# A recording never changes after the fact.
_FIRST_WINS: Final = Policy(strategy=Strategy.SERVER_WINS, auto_resolve=True, notify_on_conflict=False)
_UPLOAD: Final = "device_sessions.batch_upload"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A session as a phone sent it, before it is checked."""

    id: Any
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
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

    results: list[Result]
    counts: Counter[str]
    """By status."""
    server_time: datetime


class DeviceSessions:
    """Recorded sessions as typed views on records; what is stored once is never overwritten."""

    def __init__(self, store: RecordStore, domains: Domains, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._domains = domains
        self._now = now

    async def upload(
        self, caller: Principal, recordings: Sequence[Recording | Failure], key: IdempotencyKey | None
    ) -> Uploaded:
        """Stores each session that is not there yet; a bad item is only its own receipt's error."""
        now = self._now()
        changes = named(capture(lambda recording: self._change(recording, now), recordings), "sessions")
        good = [change for change in changes if isinstance(change, Change)]
        statuses: list[str] = []
        if good:
            keys = [change.key for change in good]
            async with self._store.feed(caller, keys, rpc=_UPLOAD, idempotency=key, now=now) as feed:
                if feed.answer is not None:
                    # What was refused then is refused again, though the clock may have made it good since.
                    statuses, refused = feed.answer["statuses"], feed.answer["refused"]
                    changes = [
                        recalled(refused[str(index)]) if str(index) in refused else change
                        for index, change in enumerate(changes)
                    ]
                else:
                    decided = decide(feed, good, policy=_FIRST_WINS)
                    statuses = [_status(receipt) for receipt in decided.receipts]
                    # To the phone a known id is a duplicate, whatever it holds: nothing met that is worth a log.
                    await feed.write(decided._replace(conflicts=[]), now)
                    refused = {str(i): kept(one) for i, one in enumerate(changes) if isinstance(one, Failure)}
                    await feed.keep(_UPLOAD, key, {"statuses": statuses, "refused": refused}, now)
        return _uploaded(recordings, changes, statuses, now)

    def _change(self, recording: Recording, now: datetime) -> Change:
        id = parse_uuid("client_session_id", recording.id)
        domain = domain_of(recording)
        return typed_change(Key(domain, id), self._domains.prepare(domain, recording.data, now), now=now)


def domain_of(recording: Recording) -> str:
    """The domain of what a device of its kind records."""
    device = recording.data.get("device_type")
    return device if isinstance(device, str) and device in DEVICES else OTHER_DEVICES


def tally_of(recordings: Sequence[Recording | Failure]) -> Tally:
    """What a batch carries, whatever will become of it."""
    first = next((domain_of(one) for one in recordings if isinstance(one, Recording)), "")
    return Tally(first, len(recordings))


def prepare(data: dict[str, Any], now: datetime) -> Prepared:
    """What is stored of checked data: its times in one spelling."""
    started = plausible("started_at", parse_time("started_at", data["started_at"]), now)
    times = {"started_at": canonical_time(data["started_at"], started)}
    if "ended_at" in data:
        ended = plausible("ended_at", parse_time("ended_at", data["ended_at"]), now)
        if ended < started:
            raise invalid("ended_at", "is before started_at")
        times["ended_at"] = canonical_time(data["ended_at"], ended)
    return Prepared({**data, **times}, started)


def _status(receipt: Receipt) -> str:
    return "created" if receipt.status == "APPLIED" else "duplicate"


def _uploaded(
    recordings: Sequence[Recording | Failure],
    changes: Sequence[Change | Failure],
    statuses: Sequence[str],
    now: datetime,
) -> Uploaded:
    remaining = iter(statuses)
    results = [
        Result(
            client_session_id=_shown_id(recording),
            status="error" if isinstance(change, Failure) else next(remaining),
            session_id="" if isinstance(change, Failure) else change.key.id,
            failure=change if isinstance(change, Failure) else None,
        )
        for recording, change in zip(recordings, changes, strict=True)
    ]
    return Uploaded(results=results, counts=Counter(result.status for result in results), server_time=now)


def _shown_id(recording: Recording | Failure) -> str:
    id = recording.id if isinstance(recording, Recording) else None
    if not isinstance(id, str):
        return ""
    return id[:100] if id.isascii() else id[:100].encode("utf-8", "replace").decode()
