"""Owns the queries on second factors and recovery codes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.database import Database, Transaction
from services.auth.events_domain import SecurityEvent
from services.auth.events_store import write_event
from services.auth.second_factors_codes import CodeKind
from services.auth.second_factors_domain import SECRET, Owner, SecondFactorState, Try
from services.auth.tables import accounts, recovery_codes, second_factors, sign_ins, time
from services.auth.vault import SealedRow

_now: Final = bindparam("now", type_=time)
_is_of: Final = second_factors.c.account_id == bindparam("account_id", type_=sa.Uuid)

_STATE: Final = sa.select(
    second_factors.c.enable_time,
    sa.select(sa.func.count())
    .where(recovery_codes.c.account_id == second_factors.c.account_id, recovery_codes.c.use_time.is_(None))
    .scalar_subquery()
    .label("recovery_codes_left"),
).where(_is_of)
_OWNER: Final = (
    sa.select(accounts.c.email, accounts.c.password_hash, sign_ins.c.create_time)
    .join(sign_ins, sign_ins.c.account_id == accounts.c.id)
    .where(
        accounts.c.id == bindparam("account_id", type_=sa.Uuid),
        accounts.c.delete_time.is_(None),
        sign_ins.c.id == bindparam("sign_in_id", type_=sa.Uuid),
        sign_ins.c.revoke_time.is_(None),
    )
)
_new = postgresql.insert(second_factors).values(
    account_id=bindparam("account_id"),
    key_id=bindparam("key_id"),
    sealed_key=bindparam("sealed_key"),
    sealed_secret=bindparam("sealed_secret"),
    create_time=_now,
    tries_since=_now,
    recovery_tries_since=_now,
)
# What was begun and not confirmed gives way; its count of tries stays.
_BEGIN: Final = _new.on_conflict_do_update(
    index_elements=["account_id"],
    set_={name: _new.excluded[name] for name in ("key_id", "sealed_key", "sealed_secret", "create_time")},
    where=second_factors.c.enable_time.is_(None),
)
_ENABLE: Final = (
    sa.update(second_factors)
    .values(enable_time=_now, last_step=bindparam("step"), tries=0)
    .where(
        _is_of,
        second_factors.c.enable_time.is_(None),
        # The one that was begun last, and not one that another phone has begun since.
        second_factors.c.sealed_secret == bindparam("confirmed", type_=sa.LargeBinary),
    )
)
# Each step is used once, and none before it afterwards: one statement decides between any number of replicas.
_USE_STEP: Final = (
    sa.update(second_factors)
    .values(last_step=bindparam("step"), tries=0)
    .where(
        _is_of,
        second_factors.c.enable_time.is_not(None),
        sa.or_(second_factors.c.last_step.is_(None), second_factors.c.last_step < bindparam("step")),
    )
)
_DISABLE: Final = sa.delete(second_factors).where(_is_of)
_FORGET_CODES: Final = sa.delete(recovery_codes).where(
    recovery_codes.c.account_id == bindparam("account_id", type_=sa.Uuid)
)
_ADD_CODES: Final = sa.insert(recovery_codes).from_select(
    ["account_id", "digest"],
    sa.select(
        bindparam("account_id", type_=sa.Uuid),
        sa.func.unnest(bindparam("digests", type_=postgresql.ARRAY(sa.LargeBinary))),
    ),
)
_USE_CODE: Final = (
    sa.update(recovery_codes)
    .values(use_time=_now)
    .where(
        recovery_codes.c.account_id == bindparam("account_id", type_=sa.Uuid),
        recovery_codes.c.digest == bindparam("digest", type_=sa.LargeBinary),
        recovery_codes.c.use_time.is_(None),
    )
)


def _count(tries: sa.Column[Any], since: sa.Column[Any]) -> sa.Update:
    """Counts a try, also one too many, and begins anew when the window is over: tries at once are all counted."""
    over = since <= bindparam("begun_before", type_=time)
    return (
        sa.update(second_factors)
        .values(
            {
                tries.name: sa.case((over, sa.literal_column("1")), else_=tries + sa.literal_column("1")),
                since.name: sa.case((over, _now), else_=since),
            }
        )
        .where(_is_of)
        .returning(
            second_factors.c.key_id,
            second_factors.c.sealed_key,
            second_factors.c.sealed_secret,
            second_factors.c.enable_time,
            tries.label("tries"),
            since.label("since"),
        )
    )


_COUNT: Final = {
    "totp": _count(second_factors.c.tries, second_factors.c.tries_since),
    "recovery": _count(second_factors.c.recovery_tries, second_factors.c.recovery_tries_since),
}


class SecondFactorStore:
    """Second factors in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def state(self, account_id: UUID) -> SecondFactorState:
        """What an account has."""
        async with self._database.statements() as statements:
            row = await statements.one(_STATE, account_id=account_id)
        return SecondFactorState(
            enable_time=row["enable_time"] if row else None,
            recovery_codes_left=row["recovery_codes_left"] if row else 0,
        )

    async def owner(self, account_id: UUID, sign_in_id: UUID) -> Owner | None:
        """Who has signed in; None: the account is gone, or the sign-in has ended."""
        async with self._database.statements() as statements:
            row = await statements.one(_OWNER, account_id=account_id, sign_in_id=sign_in_id)
        if row is None:
            return None
        return Owner(
            email=row["email"] or "", password_hash=row["password_hash"] or "", sign_in_time=row["create_time"]
        )

    async def begin(self, account_id: UUID, sealed: SealedRow, now: datetime) -> bool:
        """Stores a secret that is to be confirmed; False: the account has a second factor."""
        async with self._database.statements() as statements:
            begun = await statements.execute(
                _BEGIN,
                account_id=account_id,
                key_id=sealed.key_id,
                sealed_key=sealed.sealed_key,
                sealed_secret=sealed.columns[SECRET],
                now=now,
            )
        return begun > 0

    async def enable(
        self,
        account_id: UUID,
        sealed: SealedRow,
        step: int,
        digests: Sequence[bytes],
        now: datetime,
        event: SecurityEvent,
    ) -> bool:
        """Turns on what was begun with this secret; False: it is on already, or another one was begun since."""
        async with self._database.transaction() as transaction:
            if not await transaction.execute(
                _ENABLE, account_id=account_id, confirmed=sealed.columns[SECRET], step=step, now=now
            ):
                return False
            await _replace_codes(transaction, account_id, digests)
            await write_event(transaction, event, now)
        return True

    async def disable(self, account_id: UUID, now: datetime, event: SecurityEvent) -> None:
        """Ends a second factor and its recovery codes."""
        async with self._database.transaction() as transaction:
            if await forget_second_factor(transaction, account_id):
                await write_event(transaction, event, now)

    async def renew(self, account_id: UUID, digests: Sequence[bytes], now: datetime, event: SecurityEvent) -> None:
        """Other recovery codes in place of all that there are."""
        async with self._database.transaction() as transaction:
            await _replace_codes(transaction, account_id, digests)
            await write_event(transaction, event, now)

    async def count(
        self, account_id: UUID, kind: CodeKind, *, most: int, window: timedelta, now: datetime
    ) -> Try | None:
        """Counts a guess before anybody looks at it; None: there is nothing to guess."""
        async with self._database.statements() as statements:
            row = await statements.one(_COUNT[kind], account_id=account_id, now=now, begun_before=now - window)
        if row is None:
            return None
        return Try(
            sealed=SealedRow(
                key_id=row["key_id"], sealed_key=row["sealed_key"], columns={SECRET: row["sealed_secret"]}
            ),
            enabled=row["enable_time"] is not None,
            allowed=row["tries"] <= most,
            retry_after=max(1.0, (row["since"] + window - now).total_seconds()),
        )

    async def use_step(self, account_id: UUID, step: int) -> bool:
        """Uses a code up; False: it or a later one was used before."""
        async with self._database.statements() as statements:
            return await statements.execute(_USE_STEP, account_id=account_id, step=step) > 0

    async def use_recovery_code(self, account_id: UUID, digest: bytes, now: datetime, event: SecurityEvent) -> bool:
        """Uses a recovery code up; False: there is none, or it was used before."""
        async with self._database.transaction() as transaction:
            if not await transaction.execute(_USE_CODE, account_id=account_id, digest=digest, now=now):
                return False
            await write_event(transaction, event, now)
        return True


async def forget_second_factor(transaction: Transaction, account_id: UUID) -> bool:
    """Adds to what `transaction` does that an account has no second factor and no recovery codes; whether it had."""
    had = await transaction.execute(_DISABLE, account_id=account_id)
    await transaction.execute(_FORGET_CODES, account_id=account_id)
    return had > 0


async def _replace_codes(transaction: Transaction, account_id: UUID, digests: Sequence[bytes]) -> None:
    await transaction.execute(_FORGET_CODES, account_id=account_id)
    await transaction.execute(_ADD_CODES, account_id=account_id, digests=list(digests))
