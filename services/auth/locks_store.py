"""Owns holding an account while something is added to it, so that it is not deleted in between."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Transaction
from services.auth.tables import accounts

_HOLD: Final = (
    sa.select(accounts.c.id)
    .where(accounts.c.id == bindparam("account_id", type_=sa.Uuid), accounts.c.delete_time.is_(None))
    .with_for_update(key_share=True)
)


async def hold_account(transaction: Transaction, account_id: UUID) -> bool:
    """Holds an account until `transaction` ends, alone among those who call this; False: there is no such account."""
    return await transaction.one(_HOLD, account_id=account_id) is not None
