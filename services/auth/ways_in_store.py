"""Owns the list of what opens an account, and how all of it ends. A new way in belongs here."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Transaction
from services.auth.application_tokens_store import end_application_tokens
from services.auth.codes_domain import Purpose
from services.auth.codes_store import spend_all
from services.auth.second_factors_store import forget_second_factor
from services.auth.sign_ins_store import end_sign_ins
from services.auth.tables import accounts, identities

_NO_SIGN_IN: Final = UUID(int=0)
_END_PASSWORD: Final = (
    sa.update(accounts).values(password_hash=sa.literal_column("''")).where(accounts.c.id == bindparam("account_id"))
)
_FORGET_IDENTITIES: Final = sa.delete(identities).where(identities.c.account_id == bindparam("account_id"))


async def forget_identities(transaction: Transaction, account_id: UUID) -> int:
    """Adds to what `transaction` does that no identity opens an account; how many did."""
    return await transaction.execute(_FORGET_IDENTITIES, account_id=account_id)


async def end_ways_in(transaction: Transaction, account_id: UUID, now: datetime) -> None:
    """Adds to what `transaction` does that nothing of before opens an account, or keeps its owner out of it.

    Callers hold the account's row.
    """
    await transaction.execute(_END_PASSWORD, account_id=account_id)
    await forget_identities(transaction, account_id)
    await forget_second_factor(transaction, account_id)
    # Codes that are on their way, a change of the address among them.
    await spend_all(transaction, account_id, tuple(Purpose), now)
    await end_sign_ins(transaction, account_id, _NO_SIGN_IN, this=True, others=True, now=now)
    await end_application_tokens(transaction, account_id, now)
