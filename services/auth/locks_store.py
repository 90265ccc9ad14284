"""Owns holding an account, or a sign-in, while something is added by it, so that it does not end in between."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Transaction
from runtime.errors import Failure, Reason
from services.auth.tables import accounts, sign_ins

_HOLD: Final = (
    sa.select(accounts.c.id)
    .where(accounts.c.id == bindparam("account_id", type_=sa.Uuid), accounts.c.delete_time.is_(None))
    .with_for_update(key_share=True)
)
_HOLD_SIGN_IN: Final = (
    sa.select(sign_ins.c.id)
    .where(sign_ins.c.id == bindparam("sign_in_id", type_=sa.Uuid), sign_ins.c.revoke_time.is_(None))
    .with_for_update(read=True)
)


async def hold_account(transaction: Transaction, account_id: UUID) -> bool:
    """Holds an account until `transaction` ends, alone among those who call this; False: there is no such account."""
    return await transaction.one(_HOLD, account_id=account_id) is not None


async def hold_sign_in(transaction: Transaction, sign_in_id: UUID | None) -> None:
    """Holds the sign-in by which a way into an account is added until `transaction` ends; None: there is none to hold.

    A service may hear of a sign-in's end some moments late, and what is added would outlive it. The account is held
    first. Raises Failure(TOKEN_REVOKED) when it has ended.
    """
    if sign_in_id is not None and await transaction.one(_HOLD_SIGN_IN, sign_in_id=sign_in_id) is None:
        raise Failure(Reason.TOKEN_REVOKED)
