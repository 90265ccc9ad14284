"""Owns that what is in the outbox shows up in the users' feeds, in its order, whatever is away or dies meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from runtime.errors import Failure, Reason
from runtime.mesh import RecordToStore, StoreReceipt
from runtime.rounds import FIRST_PAUSE, Rounds, pause_after
from runtime.telemetry import OUTBOX_ERRORS, OUTBOX_RECORDS, logger

if TYPE_CHECKING:
    from runtime.database import Connection
    from services.uploads.outbox_store import OutboxStore
    from services.uploads.uploads_domain import Upload

BATCH: Final = 100
# Well below what a message may hold; a record is at most 256 KiB.
BATCH_BYTES: Final = 4 * 1024 * 1024
# After so long a replica that has taken a user up is believed to be gone; longer than any attempt.
CLAIM: Final = timedelta(seconds=60)
# So long before that, nobody else has taken them up, and no statement of ours is under way any more when they do.
SURELY_OURS: Final = timedelta(seconds=20)
# So many users in a row whose call found nobody: it is not about them.
UNHEARD: Final = 3

Add = Callable[..., Awaitable[None]]
StoreRecords = Callable[[UUID, int, Sequence[RecordToStore]], Awaitable[list[StoreReceipt]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outgoing:
    """A record as it is to be."""

    id: int
    """Its place in the outbox: of two of the same record the later one counts."""
    domain: str
    record_id: str
    data: dict[str, Any] | None
    """None: the record is to end."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is next to be told of a user, who is taken up until it is finished or put off."""

    claim_id: int
    user_id: UUID
    tenant_id: int
    attempts: int
    """Since something of this user's was last told."""
    records: Sequence[Outgoing]
    """At least one, in the order of the outbox, each record once."""


class Outbox:
    """Where it is left what is to show up in feeds."""

    def __init__(self, add: Add, look: Callable[[], None], *, now: Callable[[], datetime]) -> None:
        """`add`: outbox_store.add; `look`: what `relaying` yields."""
        self._add = add
        self._now = now
        self.look: Final = look
        """To be called once the transaction of `tell` is committed."""

    async def tell(self, connection: Connection, upload: Upload, domain: str, data: dict[str, Any] | None) -> None:
        """Adds the upload's record in a domain, None for its end, to the transaction that holds the upload."""
        await self._add(
            connection,
            user_id=upload.user_id,
            tenant_id=upload.tenant_id,
            domain=domain,
            record_id=str(upload.id),
            data=data,
            now=self._now(),
        )


class Relay:
    """Tells the sessions service what is due, user by user; any number of replicas may do it at once."""

    def __init__(self, store: OutboxStore, store_records: StoreRecords, *, now: Callable[[], datetime]) -> None:
        """`store_records`: SessionsClient.store_records."""
        self._store = store
        self._store_records = store_records
        self._now = now
        self._taken: tuple[Batch, datetime] | None = None
        """What is taken up and neither finished nor put off, and until when it is nobody else's."""

    async def carry_out(self) -> None:
        """Tells all that is due; what fails is put off, longer each time. Raises when the database is away.

        Where nobody listens, the users that are next need not be tried, and nobody is kept waiting for longer.
        """
        await self._give_back()
        unheard = 0
        while unheard < UNHEARD and (batch := await self._take()):
            records = list(_sendable(batch))
            try:
                outcomes = await self._tell(batch, records)
            except Exception as error:  # whatever it was, it is tried again until it is done
                OUTBOX_ERRORS.inc()
                logger().warning("cannot store records yet", user=batch.user_id, error=repr(error))
                away = isinstance(error, Failure) and error.reason is Reason.UNAVAILABLE
                unheard += away
                until = self._now() + (FIRST_PAUSE if away else pause_after(batch.attempts))
                await self._store.put_off(batch, until, attempts=batch.attempts + (not away))
                self._taken = None
                continue
            unheard = 0
            for record, receipt in outcomes:
                _report(batch, record, receipt)
            rejected = [record for record, receipt in outcomes if receipt.status == "REJECTED"]
            await self._store.finish(batch, [one for one in records if one not in rejected], rejected)
            self._taken = None

    async def _take(self) -> Batch | None:
        until = self._now() + CLAIM
        batch = await self._store.take(self._now(), CLAIM, BATCH)
        if batch is not None:
            self._taken = batch, until
        return batch

    async def _give_back(self) -> None:
        """Puts back what the database went away over, so that it need not wait until it is anybody's again."""
        if self._taken is not None:
            batch, until = self._taken
            # Not when it is about to be somebody else's: two who tell of one user could do it in the wrong order.
            if self._now() < until - SURELY_OURS:
                await self._store.put_off(batch, self._now(), attempts=batch.attempts)
            self._taken = None

    async def _tell(self, batch: Batch, records: Sequence[Outgoing]) -> list[tuple[Outgoing, StoreReceipt]]:
        asked = [RecordToStore(domain=one.domain, id=one.record_id, data=_text(one.data)) for one in records]
        receipts = await self._store_records(batch.user_id, batch.tenant_id, asked)
        return list(zip(records, receipts, strict=True))


@asynccontextmanager
async def relaying(
    store: OutboxStore, store_records: StoreRecords, *, now: Callable[[], datetime]
) -> AsyncIterator[Callable[[], None]]:
    """Tells what falls due for as long as the block runs; call what it yields once something was added."""
    rounds = Rounds(Relay(store, store_records, now=now).carry_out, name="relay the outbox")
    async with rounds.running():
        yield rounds.look


def _sendable(batch: Batch) -> Iterable[Outgoing]:
    """As many as go into one message; after a failure only the first, so that the one at fault stops no other."""
    size = 0
    for number, one in enumerate(batch.records):
        size += len(_text(one.data) or "")
        if number and (batch.attempts or size > BATCH_BYTES):
            return
        yield one


def _text(data: dict[str, Any] | None) -> str | None:
    return None if data is None else orjson.dumps(data).decode()


def _report(batch: Batch, record: Outgoing, receipt: StoreReceipt) -> None:
    OUTBOX_RECORDS.labels(receipt.status).inc()
    if receipt.status != "REJECTED":
        return
    of = {"user": batch.user_id, "domain": record.domain, "id": record.record_id}
    if receipt.reason == Reason.NOT_FOUND.name:
        logger().info("a record came too late: its user was erased", **of)
    else:
        logger().error("a record can never be stored and is dropped", **of, reason=receipt.reason, why=receipt.message)
