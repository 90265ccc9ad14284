"""Owns a user's totals: the app's absolute values where it has set them, the stored sessions everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from runtime.call import IdempotencyKey, Principal
from runtime.errors import Failure, Reason
from services.sessions.changes_domain import decide, typed_change
from services.sessions.policies_domain import Policy, Strategy
from services.sessions.records_domain import Key, Known
from services.sessions.schemas import encode

if TYPE_CHECKING:
    from services.sessions.domains import Domains
    from services.sessions.records_store import RecordStore
    from services.sessions.stats_store import StatsStore


KEY: Final = Key("stats", "me")
TOTALS: Final = (
    "total_sessions",
    "total_duration_seconds",
    "total_distance_meters",
    "total_calories",
    "total_xp",
    "current_streak_days",
)
NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
_APP_WINS: Final = Policy(strategy=Strategy.CLIENT_WINS, auto_resolve=True, notify_on_conflict=False)
_UPDATE: Final = "stats.update"


@dataclass(frozen=True, kw_only=True)
class Derived:
    """What the stored sessions add up to."""

    totals: dict[str, float]
    """All of TOTALS but the streak."""
    days: Sequence[date]
    """The UTC days with a session, newest first."""
    update_time: datetime | None
    """The newest change of a session; None when there is none."""


@dataclass(frozen=True, kw_only=True)
class Stats:
    """A user's totals, each with who says so."""

    totals: dict[str, float]
    source: dict[str, str]
    """app or server, for each of TOTALS."""
    extra: dict[str, Any]
    update_time: datetime


class UserStats:
    """Totals as a typed view on the one record of domain `stats`; the app wins."""

    def __init__(self, store: RecordStore, stats: StatsStore, domains: Domains, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._stats = stats
        self._domains = domains
        self._now = now

    async def get(self, caller: Principal) -> Stats:
        """The caller's totals."""
        record = await self._store.record(caller.user_id, KEY)
        derived = await self._stats.derived(caller.user_id)
        live = record if record is not None and not record.deleted else None
        return combine(live.data if live else {}, live.update_time if live else None, derived, self._now())

    async def update(self, caller: Principal, given: dict[str, Any], key: IdempotencyKey | None) -> Stats:
        """Overwrites the given totals and keeps the others. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
        if not given:
            raise Failure(Reason.FIELD_MISSING, "At least one total must be given.")
        now = self._now()
        encode(self._domains.prepare(KEY.domain, given, now).data)
        async with self._store.feed(caller, [KEY], rpc=_UPDATE, idempotency=key, now=now) as feed:
            if feed.answer is None:
                data = {**_kept(feed.known.get(KEY)), **given}
                change = typed_change(KEY, self._domains.prepare(KEY.domain, data, now), now=now)
                # Built on what is there, so there is nothing to lose and nothing to log.
                await feed.write(decide(feed, [change], policy=_APP_WINS)._replace(conflicts=[]), now)
                await feed.keep(_UPDATE, key, {}, now)
        return await self.get(caller)


def combine(said: dict[str, Any], said_time: datetime | None, derived: Derived, now: datetime) -> Stats:
    """The app's word over the server's sums. `said` is the app's record and `said_time` its last change, if any."""
    totals = {**derived.totals, "current_streak_days": streak(derived.days, now.astimezone(UTC).date())}
    return Stats(
        totals={name: said.get(name, totals[name]) for name in TOTALS},
        source={name: "app" if name in said else "server" for name in TOTALS},
        extra=said.get("extra", {}),
        update_time=max(said_time or NEVER, derived.update_time or NEVER),
    )


def streak(days: Sequence[date], today: date) -> int:
    """Days in a row with a session, ending today, or yesterday while today has none yet; `days` newest first."""
    past = [day for day in days if day <= today]
    if not past or past[0] < today - timedelta(days=1):
        return 0
    return next((count for count, day in enumerate(past) if day != past[0] - timedelta(days=count)), len(past))


def _kept(known: Known | None) -> dict[str, Any]:
    return known.data if known is not None and not known.deleted else {}
