"""Owns how all that the vault seals comes under its newest key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from runtime.telemetry import logger
from services.auth.vault import Vault, VaultError

if TYPE_CHECKING:
    from services.auth.rewraps_store import RewrapStore

_ROWS_AT_ONCE: Final = 100


@dataclass(frozen=True, kw_only=True)
class Rewrapped:
    """What became of a change of the vault's keys."""

    rows: int
    """That are now under the newest key, and were not before."""
    unreadable: int
    """That no key opens; they were left as they are."""


async def rewrap_all(store: RewrapStore, vault: Vault) -> Rewrapped:
    """Brings every row of a table under the vault's newest key, while services read and write them.

    It can be broken off and begun again at any time. A row that changes under it is looked at once more.
    """
    rows = 0
    while True:
        after, touched, unreadable = UUID(int=0), 0, 0
        while found := await store.under_other_keys(vault.newest(), after, _ROWS_AT_ONCE):
            for account_id, sealed in found:
                after = account_id
                try:
                    row = vault.rewrap(account_id, sealed)
                except VaultError as error:
                    logger().error("cannot open a row of the vault", table=vault.table, user=after, error=str(error))
                    unreadable += 1
                    continue
                touched += 1
                rows += await store.rewrap(account_id, sealed.sealed_key, row)
        if not touched:
            return Rewrapped(rows=rows, unreadable=unreadable)
