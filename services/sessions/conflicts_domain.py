"""Owns what happens around conflicts: the tenant's policies, the log, and the decisions that were left to people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from runtime import paging
from runtime.call import Principal
from runtime.clock import parse_moment
from runtime.errors import Failure, Reason, invalid, missing
from runtime.ids import parse_uuid
from runtime.telemetry import logger
from services.sessions.changes_domain import Change, decide
from services.sessions.policies_domain import Policy, Side, Strategy, Winner, judge
from services.sessions.records_domain import Key, Record
from services.sessions.schemas import encode

if TYPE_CHECKING:
    from services.sessions.conflicts_store import ConflictStore
    from services.sessions.domains import Domains
    from services.sessions.records_store import RecordStore

LOG_LIFETIME: Final = timedelta(days=90)
DRY_RUN: Final = timedelta(days=7)
DRY_RUN_CONFLICTS: Final = 10_000
# So many of those that are open are told to a phone that comes; the rest is in the log.
MAX_OPEN_TOLD: Final = 100
OPTIONS: Final = ("accept_server", "accept_client", "merge")
RESULTS: Final = ("resolved", "manual_required")
_RESOLVE: Final = "sync.resolve"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedConflict:
    """A conflict in the log."""

    id: UUID
    user_id: UUID
    """Whose record it is."""
    key: Key
    server_version: int
    client_version: int
    strategy: Strategy
    winner: Winner
    server: Side
    client: Side
    create_time: datetime
    resolve_time: datetime | None
    """When somebody decided it; None also for one that its policy decided."""

    @property
    def result(self) -> str:
        """Resolved or manual_required."""
        return "manual_required" if self.winner is Winner.NONE else "resolved"

    @property
    def losing_data(self) -> dict[str, Any]:
        """The side that lost; of one that is not decided, the phone's."""
        return (self.server.data if self.winner is Winner.CLIENT else self.client.data) or {}


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which conflicts are meant."""

    tenant_id: int
    user_id: UUID | None
    """None: of everybody in the tenant."""
    domain: str
    """Empty: of every domain."""
    since: datetime
    result: str = ""
    """As LoggedConflict.result; empty: all."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """A stretch of the log."""

    conflicts: Sequence[LoggedConflict]
    total: int
    rate_pct: float
    """Conflicts of the hundred of pushed changes."""
    next_token: str


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """A conflict beside the record that it is about."""

    conflict: LoggedConflict
    record: Record | None
    """As it stands; None: there is none."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """How logged conflicts would have gone under another policy."""

    winners: Counter[Winner]
    changed: int


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A conflict that somebody decided."""

    conflict_id: UUID
    winner: Winner
    version: int
    """The record's version now."""


class Conflicts:
    """Policies per tenant and domain, the log of conflicts, and the inbox of open ones."""

    def __init__(
        self, store: RecordStore, log: ConflictStore, domains: Domains, *, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._log = log
        self._domains = domains
        self._now = now

    async def policy(self, caller: Principal, tenant_id: int, domain: str) -> Policy:
        """The tenant's policy. Raises Failure: FORBIDDEN for another tenant's, NOT_FOUND for an unknown domain."""
        self._check_place(caller, tenant_id, domain)
        return await self._log.policy(tenant_id, domain) or self._domains.default_policy(domain)

    async def set_policy(self, caller: Principal, tenant_id: int, domain: str, policy: Policy) -> None:
        """Decides for the tenant from now on.

        Raises Failure: FORBIDDEN, NOT_FOUND, FIELD_INVALID for a domain in which nothing can ever meet.
        """
        self._check_place(caller, tenant_id, domain)
        self._domains.check_writable(domain)
        await self._log.set_policy(tenant_id, domain, policy, self._now())

    async def dry_run(self, caller: Principal, tenant_id: int, domain: str, policy: Policy) -> DryRun:
        """How last week's conflicts would have gone. Raises Failure as set_policy."""
        self._check_place(caller, tenant_id, domain)
        self._domains.check_writable(domain)
        scope = Scope(tenant_id=tenant_id, user_id=None, domain=domain, since=self._now() - DRY_RUN)
        logged = await self._log.page(scope, limit=DRY_RUN_CONFLICTS)
        winners = [judge(policy, server=one.server, client=one.client).winner for one in logged]
        changed = sum(one.winner is not winner for one, winner in zip(logged, winners, strict=True))
        return DryRun(winners=Counter(winners), changed=changed)

    async def log(
        self, caller: Principal, tenant_id: int, domain: str, since: str, size: int, token: str, *, result: str = ""
    ) -> Log:
        """The caller's conflicts, or the tenant's for its administrator, newest first. Raises Failure."""
        if tenant_id not in (0, caller.tenant_id):
            raise Failure(Reason.FORBIDDEN)
        if result and result not in RESULTS:
            raise invalid("resolution_result", f"must be one of {', '.join(RESULTS)}", "UNKNOWN_VALUE")
        limit, before = paging.page_size(size), paging.decode_token(token)
        start = self._now() - LOG_LIFETIME
        scope = Scope(
            tenant_id=caller.tenant_id,
            user_id=None if caller.role == "admin" else caller.user_id,
            domain=domain.replace("\x00", "?"),
            since=max(start, parse_moment("since", since)) if since else start,
            result=result,
        )
        found = await self._log.page(
            scope, limit=limit + 1, before=(before[0], UUID(parse_uuid("page_token", before[1]))) if before else None
        )
        conflicts, pushed = await self._log.totals(scope)
        more = len(found) > limit
        return Log(
            conflicts=found[:limit],
            total=conflicts,
            rate_pct=round(100 * conflicts / pushed, 2) if pushed else 0.0,
            next_token=paging.encode_token(found[limit - 1].create_time, str(found[limit - 1].id)) if more else "",
        )

    async def open(self, caller: Principal) -> Sequence[UUID]:
        """The newest of the caller's conflicts that wait for a decision, oldest first."""
        return await self._log.open(caller.user_id, MAX_OPEN_TOLD)

    async def find(self, caller: Principal, id: UUID) -> LoggedConflict | None:
        """One of the caller's conflicts; None when there is none."""
        return await self._log.conflict(caller.user_id, id)

    async def inspect(self, caller: Principal, conflict_id: str) -> Inspected:
        """A conflict that the caller may decide, or might have. Raises Failure: FIELD_INVALID, NOT_FOUND."""
        conflict = await self._decidable(caller, conflict_id)
        return Inspected(conflict=conflict, record=await self._store.record(conflict.user_id, conflict.key))

    async def resolve(
        self, caller: Principal, conflict_id: str, resolution: str, client_data: dict[str, Any] | None
    ) -> Resolved:
        """Decides an open conflict of the caller, or of somebody whose tenant the caller administers, once.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, NOT_FOUND, SYNC_CONFLICT when it was decided already.
        """
        if not resolution:
            raise missing("resolution")
        if resolution not in OPTIONS:
            raise invalid("resolution", f"must be one of {', '.join(OPTIONS)}", "UNKNOWN_VALUE")
        if resolution == "merge" and client_data is None:
            raise missing("client_data")
        conflict, now = await self._decidable(caller, conflict_id), self._now()
        winner = {"accept_server": Winner.SERVER, "accept_client": Winner.CLIENT, "merge": Winner.MERGED}[resolution]
        key = conflict.key
        if winner is not Winner.SERVER:
            if key.domain not in self._domains:
                raise invalid("domain", "is not known here any more", "UNKNOWN_VALUE")
            self._domains.check_writable(key.domain)  # it met before the domain was the server's
        own = conflict.user_id == caller.user_id
        # By the role of a service an erased feed is no reason to tell an administrator that the token has ended.
        owner = caller if own else replace(caller, user_id=conflict.user_id, role="service")
        async with self._store.feed(owner, [key], rpc=_RESOLVE, idempotency=None, now=now) as feed:
            if feed.erased:
                raise Failure(Reason.NOT_FOUND, "There is no such conflict.")
            if not await feed.close_conflict(conflict.id, winner, now):
                raise Failure(Reason.SYNC_CONFLICT)
            if not own:
                feed.news.append(conflict.id)  # nobody on its owner's side has seen the decision
            known = feed.known.get(key)
            version = known.version if known else 0
            if winner is not Winner.SERVER:
                data = conflict.client.data if resolution == "accept_client" else client_data
                decided = decide(feed, [self._change(key, data, version, now)])
                await feed.write(decided._replace(receipts=[]), now)  # a decision is no push
                version = decided.receipts[0].version
        if not own:
            logger().info(
                "an administrator decided a conflict",
                conflict=conflict.id,
                user=conflict.user_id,
                by=caller.user_id,
                tenant=caller.tenant_id,
                domain=key.domain,
                record=key.id,
                winner=str(winner),
                version=version,
            )
        return Resolved(conflict_id=conflict.id, winner=winner, version=version)

    async def _decidable(self, caller: Principal, conflict_id: str) -> LoggedConflict:
        id = UUID(parse_uuid("conflict_id", conflict_id))
        conflict = await self._log.conflict(caller.user_id, id)
        if conflict is None and caller.role == "admin":
            conflict = await self._log.conflict_of_tenant(caller.tenant_id, id)
        if conflict is None:
            raise Failure(Reason.NOT_FOUND, "There is no such conflict.")
        return conflict

    def _change(self, key: Key, data: dict[str, Any] | None, version: int, now: datetime) -> Change:
        try:
            prepared = self._domains.prepare(key.domain, data, now) if data is not None else None
            raw = encode(prepared.data) if prepared else "{}"
        except Failure as failure:
            raise failure.within("client_data") from None
        return Change(
            key=key,
            data=prepared.data if prepared else None,
            raw=raw,
            base_version=version,
            change_time=now,
            happen_time=prepared.happen_time if prepared else None,
            group="",
        )

    def _check_place(self, caller: Principal, tenant_id: int, domain: str) -> None:
        if tenant_id != caller.tenant_id:
            raise Failure(Reason.FORBIDDEN, "This is another tenant's.")
        if domain not in self._domains:
            raise Failure(Reason.NOT_FOUND, "There is no such domain.")
