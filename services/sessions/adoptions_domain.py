"""Owns adoption: how all that a guest has becomes an account's, in steps that may be cut off anywhere and repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from runtime.errors import Failure, Reason, invalid
from runtime.ids import parse_uuid
from services.sessions.changes_domain import NO_VERSION, Change, Decided, decide
from services.sessions.records_domain import Key, Known, Prepared
from services.sessions.schemas import encode
from services.sessions.stored_records_domain import owner_of

if TYPE_CHECKING:
    from services.sessions.adoptions_store import AdoptionStore
    from services.sessions.erasures_store import ErasureStore

# Records of one transaction, in which nobody else writes to either feed.
BATCH: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """A live record of a guest."""

    known: Known
    prepared: Prepared


@dataclass(frozen=True, kw_only=True, slots=True)
class Adopted:
    """What a call has moved."""

    records: int
    conflicts: int


class Adoptions:
    """Moves what guests have to accounts."""

    def __init__(
        self, store: AdoptionStore, erasures: ErasureStore, *, now: Callable[[], datetime], batch: int = BATCH
    ) -> None:
        self._store = store
        self._erasures = erasures
        self._now = now
        self._batch = batch

    async def adopt(self, guest_id: str, user_id: str, tenant_id: int) -> Adopted:
        """Moves all that the guest has to the account, batch by batch; what was done stays done.

        First the mark, behind which nothing more is stored for the guest. A record that both have is a conflict, which
        the policy decides as if the account's phone had pushed the guest's version. One that only the guest has keeps
        its version: for the phone that wrote it nothing has changed.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, NOT_FOUND when the account was erased.
        """
        guest, owner = UUID(parse_uuid("guest_id", guest_id)), owner_of(user_id, tenant_id)
        if guest == owner.user_id:
            raise invalid("guest_id", "must not be the account itself")
        await self._erasures.mark(guest, self._now())
        records = conflicts = 0
        while True:
            now = self._now()
            async with self._store.batch(guest, owner, self._batch, now) as batch:
                if batch.feed.erased:
                    raise Failure(Reason.NOT_FOUND, "The user was erased.")
                if not batch.left:
                    await batch.move_rest()
                    return Adopted(records=records, conflicts=conflicts)
                changes = [_change(one, batch.left[one]) for one in batch.left]
                decided = _with_versions(decide(batch.feed, changes), batch.left, batch.feed.known)
                await batch.feed.write(decided._replace(receipts=[]), now)  # what moves was counted as it was pushed
                await batch.remove()
            records, conflicts = records + len(changes), conflicts + len(decided.conflicts)


def _change(key: Key, left: Left) -> Change:
    return Change(
        key=key,
        data=left.prepared.data,
        raw=encode(left.prepared.data),
        base_version=NO_VERSION,
        change_time=left.known.change_time,
        happen_time=left.prepared.happen_time,
        group="",
    )


def _with_versions(decided: Decided, left: Mapping[Key, Left], known: Mapping[Key, Known]) -> Decided:
    """The same with the guest's versions where the account had nothing."""
    return decided._replace(
        writes=[
            one if one.key in known else one._replace(version=left[one.key].known.version) for one in decided.writes
        ]
    )
