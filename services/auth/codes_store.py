"""Owns the queries on one-time codes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.database import Database, Transaction
from runtime.errors import Failure, Reason
from services.auth.codes_domain import LIFETIME, MAX_TRIES, Code, Purpose
from services.auth.tables import accounts, code_tries, codes, mails, time

_now: Final = bindparam("now", type_=time)
_account_id: Final = bindparam("account_id", type_=sa.Uuid)
_purposes: Final = bindparam("purposes", type_=postgresql.ARRAY(sa.Text))
_is_live: Final = sa.and_(codes.c.use_time.is_(None), codes.c.expire_time > _now)

_new_tries: Final = postgresql.insert(code_tries).values(
    holder_id=bindparam("holder_id"),
    ip=bindparam("ip"),
    tries=sa.literal_column("1"),
    expire_time=bindparam("expire_time"),
)
_is_over: Final = code_tries.c.expire_time <= _now
_COUNT_FOR_ADDRESS: Final = _new_tries.on_conflict_do_update(
    index_elements=["holder_id", "ip"],
    set_={
        "tries": sa.case((_is_over, sa.literal_column("1")), else_=code_tries.c.tries + sa.literal_column("1")),
        "expire_time": sa.case((_is_over, _new_tries.excluded.expire_time), else_=code_tries.c.expire_time),
    },
).returning(code_tries.c.tries)
# Parallel tries stand in line at the row, each seeing what the last one left: there is never a sixth.
_COUNT_FOR_CODE: Final = (
    sa.update(codes)
    .values(tries=codes.c.tries + sa.literal_column("1"))
    .where(
        codes.c.account_id == bindparam("holder_id", type_=sa.Uuid),
        codes.c.purpose == sa.any_(_purposes),
        codes.c.number == bindparam("number"),
        codes.c.tries < bindparam("max_tries", type_=sa.Integer),
        _is_live,
    )
    .returning(codes.c.id, codes.c.account_id, codes.c.purpose, codes.c.email)
)
_SPEND: Final = sa.update(codes).values(use_time=_now).where(codes.c.id == bindparam("id"), _is_live)
_SPEND_ALL: Final = (
    sa.update(codes)
    .values(use_time=_now)
    .where(
        codes.c.account_id == _account_id,
        codes.c.purpose == sa.any_(_purposes),
        codes.c.use_time.is_(None),
    )
)
_DROP_MAILS: Final = sa.delete(mails).where(mails.c.account_id == _account_id, mails.c.kind == sa.any_(_purposes))
_LOCK_ACCOUNT: Final = sa.select(accounts.c.email).where(accounts.c.id == _account_id).with_for_update(key_share=True)
_FORGET_CODES: Final = sa.delete(codes).where(codes.c.account_id == _account_id)
_FORGET_MAILS: Final = sa.delete(mails).where(
    sa.or_(mails.c.account_id == _account_id, mails.c.email == bindparam("email"))
)


async def spend(transaction: Transaction, code: Code, now: datetime) -> None:
    """Adds to what `transaction` does that a code was used. Raises Failure(INVALID_CODE) when it has been.

    Callers hold the account's row: whoever writes to an account and its codes begins with the account.
    """
    if not await transaction.execute(_SPEND, id=code.id, now=now):
        raise Failure(Reason.INVALID_CODE)


async def spend_all(transaction: Transaction, account_id: UUID, purposes: Sequence[Purpose], now: datetime) -> None:
    """Adds to what `transaction` does that no code of these purposes is good, sent or still to be sent."""
    wanted = [str(one) for one in purposes]
    await transaction.execute(_SPEND_ALL, account_id=account_id, purposes=wanted, now=now)
    await transaction.execute(_DROP_MAILS, account_id=account_id, purposes=wanted)


async def forget_codes_and_mails(transaction: Transaction, account_id: UUID) -> None:
    """Adds to what `transaction` does that nothing of an account's codes and mail is left; locks the account."""
    account = await transaction.one(_LOCK_ACCOUNT, account_id=account_id)
    await transaction.execute(_FORGET_CODES, account_id=account_id)
    await transaction.execute(_FORGET_MAILS, account_id=account_id, email=account["email"] if account else None)


class CodeStore:
    """One-time codes in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tried(
        self, holder_id: UUID, purposes: Sequence[Purpose], number: str, ip: str, now: datetime
    ) -> list[Code]:
        """Counts a try, and returns the live codes with that number, of which there may be two, or none.

        Both counts stay, whatever comes of the try: they are committed before anybody knows whether it is right.
        """
        async with self._database.transaction() as transaction:
            counted = await transaction.one(
                _COUNT_FOR_ADDRESS, holder_id=holder_id, ip=ip, now=now, expire_time=now + LIFETIME
            )
            rows = await transaction.all(
                _COUNT_FOR_CODE,
                holder_id=holder_id,
                purposes=[str(one) for one in purposes],
                number=number,
                # An address that has used up its tries uses up no code's.
                max_tries=MAX_TRIES if counted and counted["tries"] <= MAX_TRIES else 0,
                now=now,
            )
        return [Code(**{**row, "purpose": Purpose(row["purpose"])}) for row in rows]
