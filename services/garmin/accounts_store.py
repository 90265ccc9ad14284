"""Owns the queries on links, on sign-ins that wait for a code, and on attempts to sign in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.database import Database, Row
from services.garmin.accounts_domain import Link

_SCHEMA: Final = sa.MetaData(schema="garmin")
_time: Final = sa.DateTime(timezone=True)

links: Final = sa.Table(
    "links",
    _SCHEMA,
    sa.Column("user_id", sa.Uuid, primary_key=True),
    sa.Column("link_id", sa.Uuid),
    sa.Column("tenant_id", sa.Integer),
    sa.Column("linked_at", _time),
    sa.Column("needs_sign_in", sa.Boolean),
    sa.Column("interval_hours", sa.Integer),
    sa.Column("next_sync_at", _time),
    sa.Column("refresh_until", _time),
)
sign_ins: Final = sa.Table(
    "sign_ins",
    _SCHEMA,
    sa.Column("user_id", sa.Uuid, primary_key=True),
    sa.Column("sealed_state", postgresql.BYTEA),
    sa.Column("tries", sa.Integer),
    sa.Column("expire_time", _time),
)
accounts: Final = sa.Table(
    "accounts",
    _SCHEMA,
    sa.Column("user_id", sa.Uuid, primary_key=True),
    sa.Column("subject", postgresql.BYTEA),
)
# What is only true of the account at Garmin that it was learned with.
_OF_ACCOUNT: Final = [sa.Table(name, _SCHEMA, sa.Column("user_id", sa.Uuid)) for name in ("cursors", "workouts")]
attempts: Final = sa.Table(
    "attempts",
    _SCHEMA,
    sa.Column("subject", postgresql.BYTEA, primary_key=True),
    sa.Column("times", postgresql.ARRAY(_time)),
    sa.Column("last_time", _time),
)

_user: Final = bindparam("user_id", type_=sa.Uuid)
_now: Final = bindparam("now", type_=_time)
_LINK: Final = (
    links.c.user_id,
    links.c.link_id,
    links.c.tenant_id,
    links.c.linked_at,
    links.c.needs_sign_in,
    links.c.interval_hours,
    links.c.next_sync_at,
)
_of_user: Final = links.c.user_id == _user
_of_link: Final = sa.and_(_of_user, links.c.link_id == bindparam("link_id", type_=sa.Uuid))
_GET: Final = sa.select(*_LINK).where(_of_user)
_new: Final = postgresql.insert(links).values({column.name: bindparam(column.name) for column in _LINK})
# Who links again keeps the schedule.
_PUT: Final = _new.on_conflict_do_update(
    index_elements=["user_id"],
    set_={
        **{name: _new.excluded[name] for name in ("link_id", "tenant_id", "linked_at", "needs_sign_in")},
        "refresh_until": sa.null(),
    },
)
_subject: Final = bindparam("subject", type_=sa.LargeBinary)
_IS_ANOTHER: Final = sa.select(accounts.c.subject).where(accounts.c.user_id == _user, accounts.c.subject != _subject)
_new_account: Final = postgresql.insert(accounts).values(user_id=_user, subject=_subject)
_PUT_ACCOUNT: Final = _new_account.on_conflict_do_update(
    index_elements=["user_id"],
    set_={"subject": _new_account.excluded.subject},
    where=accounts.c.subject != _new_account.excluded.subject,
)
_START_OVER: Final = [sa.delete(table).where(table.c.user_id == _user) for table in _OF_ACCOUNT]
_HOLD: Final = sa.select(links.c.link_id).where(_of_link).with_for_update()
_UNLINK: Final = sa.delete(links).where(_of_user)
_NEEDS_SIGN_IN: Final = sa.update(links).values(needs_sign_in=sa.true()).where(_of_link)
_BEGIN_REFRESH: Final = (
    sa.update(links)
    .values(refresh_until=bindparam("until", type_=_time))
    .where(_of_link, sa.or_(links.c.refresh_until.is_(None), links.c.refresh_until < _now))
)
_END_REFRESH: Final = sa.update(links).values(refresh_until=sa.null()).where(_of_link)

_begun: Final = postgresql.insert(sign_ins).values(
    user_id=bindparam("user_id"),
    sealed_state=bindparam("sealed_state"),
    tries=sa.literal_column("0"),
    expire_time=bindparam("expire_time"),
)
_WAIT: Final = _begun.on_conflict_do_update(
    index_elements=["user_id"],
    set_={name: _begun.excluded[name] for name in ("sealed_state", "tries", "expire_time")},
)
_TRY: Final = (
    sa.update(sign_ins)
    .values(tries=sign_ins.c.tries + 1)
    .where(
        sign_ins.c.user_id == _user,
        sign_ins.c.expire_time > _now,
        sign_ins.c.tries < bindparam("most", type_=sa.Integer),
    )
    .returning(sign_ins.c.sealed_state)
)
_END_SIGN_IN: Final = sa.delete(sign_ins).where(sign_ins.c.user_id == _user)
_SWEEP_SIGN_INS: Final = sa.delete(sign_ins).where(sign_ins.c.expire_time < _now)

_ATTEMPTS: Final = sa.select(attempts.c.times).where(attempts.c.subject == _subject).with_for_update()
_FIRST: Final = (
    postgresql.insert(attempts)
    .values(subject=_subject, times=sa.cast(sa.literal_column("'{}'"), postgresql.ARRAY(_time)), last_time=_now)
    .on_conflict_do_nothing(index_elements=["subject"])
)
_COUNT: Final = (
    sa.update(attempts)
    .values(times=bindparam("times", type_=postgresql.ARRAY(_time)), last_time=_now)
    .where(attempts.c.subject == _subject)
)
_FORGET: Final = sa.delete(attempts).where(attempts.c.subject == _subject)
_SWEEP_ATTEMPTS: Final = sa.delete(attempts).where(attempts.c.last_time < bindparam("before", type_=_time))


class _Wait(Exception):
    """Ends a transaction that may not count."""

    def __init__(self, until: datetime) -> None:
        super().__init__()
        self.until = until


class AccountStore:
    """Links, sign-ins and attempts in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, user_id: UUID) -> Link | None:
        """A user's link; None: nothing is linked."""
        async with self._database.statements() as statements:
            row = await statements.one(_GET, user_id=user_id)
        return _link(row) if row else None

    async def is_another(self, user_id: UUID, subject: bytes) -> bool:
        """Whether what is known of the user's synchronizations is of another account at Garmin than this one."""
        async with self._database.statements() as statements:
            return await statements.one(_IS_ANOTHER, user_id=user_id, subject=subject) is not None

    @asynccontextmanager
    async def linking(self, link: Link, subject: bytes) -> AsyncIterator[None]:
        """Links, in place of what was linked, if the block succeeds; nobody else writes to the vault meanwhile.

        `subject` is the account at Garmin: with another one than before everything begins anew.
        """
        async with self._database.transaction() as transaction:
            if await transaction.execute(_PUT_ACCOUNT, user_id=link.user_id, subject=subject):
                for statement in _START_OVER:
                    await transaction.execute(statement, user_id=link.user_id)
            await transaction.execute(_PUT, **{column.name: getattr(link, column.name) for column in _LINK})
            await transaction.execute(_END_SIGN_IN, user_id=link.user_id)
            yield

    @asynccontextmanager
    async def holding(self, user_id: UUID, link_id: UUID) -> AsyncIterator[bool]:
        """Whether this is still the user's link, and it stays so for as long as the block runs."""
        async with self._database.transaction() as transaction:
            yield await transaction.one(_HOLD, user_id=user_id, link_id=link_id) is not None

    @asynccontextmanager
    async def ending(self, user_id: UUID) -> AsyncIterator[bool]:
        """Ends the user's link and any sign-in that waits, if the block succeeds; whether there was a link."""
        async with self._database.transaction() as transaction:
            was_linked = await transaction.execute(_UNLINK, user_id=user_id) > 0
            await transaction.execute(_END_SIGN_IN, user_id=user_id)
            yield was_linked

    async def mark_ended(self, user_id: UUID, link_id: UUID) -> None:
        """Garmin refuses what this link has: it needs a sign-in."""
        async with self._database.statements() as statements:
            await statements.execute(_NEEDS_SIGN_IN, user_id=user_id, link_id=link_id)

    async def begin_refresh(self, user_id: UUID, link_id: UUID, now: datetime, until: datetime) -> bool:
        """Whether the caller, and nobody else until then, refreshes the link's tokens."""
        async with self._database.statements() as statements:
            return await statements.execute(_BEGIN_REFRESH, user_id=user_id, link_id=link_id, now=now, until=until) > 0

    async def end_refresh(self, user_id: UUID, link_id: UUID) -> None:
        """Lets others refresh again."""
        async with self._database.statements() as statements:
            await statements.execute(_END_REFRESH, user_id=user_id, link_id=link_id)

    async def wait_for_code(self, user_id: UUID, sealed_state: bytes, expire_time: datetime) -> None:
        """Keeps a sign-in, in place of an earlier one."""
        async with self._database.statements() as statements:
            await statements.execute(_WAIT, user_id=user_id, sealed_state=sealed_state, expire_time=expire_time)

    async def try_code(self, user_id: UUID, now: datetime, most: int) -> bytes | None:
        """Counts a try of the user's sign-in; None: there is none, or it is over."""
        async with self._database.statements() as statements:
            row = await statements.one(_TRY, user_id=user_id, now=now, most=most)
        return bytes(row["sealed_state"]) if row else None

    async def count(self, subjects: Sequence[bytes], now: datetime, most: int, window: timedelta) -> datetime | None:
        """Counts an attempt of each of `subjects`; until when it has to wait instead, and then it counts nowhere."""
        try:
            async with self._database.transaction() as transaction:
                for subject in sorted(subjects):
                    await transaction.execute(_FIRST, subject=subject, now=now)
                    row = await transaction.one(_ATTEMPTS, subject=subject)
                    recent = [one for one in row["times"] if one > now - window] if row else []
                    if len(recent) >= most:
                        raise _Wait(sorted(recent)[-most] + window)
                    await transaction.execute(_COUNT, subject=subject, times=[*recent, now], now=now)
        except _Wait as wait:
            return wait.until
        return None

    async def forget_attempts(self, subjects: Sequence[bytes]) -> None:
        """These have not tried."""
        async with self._database.transaction() as transaction:
            for subject in subjects:
                await transaction.execute(_FORGET, subject=subject)

    async def sweep(self, now: datetime, window: timedelta) -> None:
        """Removes what has no meaning any more."""
        async with self._database.statements() as statements:
            await statements.execute(_SWEEP_SIGN_INS, now=now)
            await statements.execute(_SWEEP_ATTEMPTS, before=now - window)


def _link(row: Row) -> Link:
    return Link(**{column.name: row[column.name] for column in _LINK})
