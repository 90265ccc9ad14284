"""Owns the queries on attempts that failed, or are not yet known to have succeeded."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.database import Database
from services.auth.attempts_domain import FORGET_AFTER, STRANGERS, Attempt
from services.auth.sign_ins_domain import Device
from services.auth.tables import attempts, sign_ins, time

_NOBODY: Final = UUID(int=0)
_device: Final = bindparam("device_key", type_=sa.Text)
_network: Final = bindparam("network", type_=sa.Text)
_account_id: Final = bindparam("account_id", type_=sa.Uuid)
_of_account: Final = sign_ins.c.account_id == _account_id
_KNOWN: Final = sa.select(
    sa.exists().where(_of_account, sign_ins.c.device_key == _device, _device != "").label("device"),
    sa.exists().where(_of_account, sign_ins.c.network == _network, _network != "").label("network"),
)

_now: Final = bindparam("now", type_=time)
_first: Final = bindparam("first", type_=sa.Interval)
_free: Final = bindparam("free", type_=sa.Integer)
_new: Final = postgresql.insert(attempts).values(
    subject=bindparam("subject"),
    place=bindparam("place"),
    failures=sa.literal_column("1"),
    time=_now,
    until_time=_now,
)
_failures: Final = sa.case(
    (attempts.c.time < bindparam("forget_before", type_=time), sa.literal_column("1")), else_=attempts.c.failures + 1
)
# No row: it has to wait. A first failure costs nobody any time, so the row that is new has none to wait.
_COUNT: Final = _new.on_conflict_do_update(
    index_elements=["subject", "place"],
    set_={
        "failures": _failures,
        "time": _now,
        "until_time": sa.case(
            (_failures < _free, _now),
            else_=_now
            + sa.func.least(
                _first.op("*")(sa.func.power(2, sa.func.least(_failures - _free, sa.literal_column("20")))),
                bindparam("longest", type_=sa.Interval),
            ),
        ),
    },
    where=attempts.c.until_time <= _now,
).returning(attempts.c.failures)
_UNTIL: Final = sa.select(attempts.c.until_time).where(
    attempts.c.subject == bindparam("subject"), attempts.c.place == bindparam("place")
)
_FORGIVE: Final = sa.delete(attempts).where(
    attempts.c.subject == bindparam("subject"), attempts.c.place == bindparam("place")
)
# Of the strangers only this one was none: what the others guessed stays counted.
_FORGIVE_STRANGER: Final = (
    sa.update(attempts)
    .values(failures=sa.func.greatest(attempts.c.failures - 1, sa.literal_column("0")), until_time=_now)
    .where(attempts.c.subject == bindparam("subject"), attempts.c.place == bindparam("place"))
)


class Known(NamedTuple):
    """What an account has seen before."""

    device: bool
    network: bool


class _Wait(Exception):
    """Ends a transaction that may not count."""

    def __init__(self, until: datetime) -> None:
        super().__init__()
        self.until = until


class AttemptStore:
    """Attempts in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def known(self, account_id: UUID | None, device: Device) -> Known:
        """Whether the account was signed in to from this device, or from its network; takes as long for no account."""
        async with self._database.statements() as statements:
            row = await statements.one(
                _KNOWN, account_id=account_id or _NOBODY, device_key=device.key, network=device.network
            )
        return Known(**row) if row else Known(False, False)

    async def count(self, attempt: Attempt, now: datetime) -> datetime | None:
        """Counts an attempt as failed; until when it has to wait instead, in which case it counts nowhere."""
        try:
            async with self._database.transaction() as transaction:
                for place, patience in attempt.places:
                    counted = await transaction.one(
                        _COUNT,
                        subject=attempt.subject,
                        place=place,
                        now=now,
                        forget_before=now - FORGET_AFTER,
                        free=patience.free,
                        first=patience.first,
                        longest=patience.longest,
                    )
                    if counted is None:
                        row = await transaction.one(_UNTIL, subject=attempt.subject, place=place)
                        raise _Wait(row["until_time"] if row else now + timedelta(seconds=1))
        except _Wait as wait:
            return wait.until
        return None

    async def forgive(self, attempt: Attempt, now: datetime) -> None:
        """An attempt that was counted has succeeded: its place has not failed at all."""
        async with self._database.transaction() as transaction:
            for place, _ in attempt.places:
                if place == STRANGERS:
                    await transaction.execute(_FORGIVE_STRANGER, subject=attempt.subject, place=place, now=now)
                else:
                    await transaction.execute(_FORGIVE, subject=attempt.subject, place=place)
