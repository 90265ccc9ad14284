"""Owns the rules of Garmin credentials: one set for a user, sealed, with a password only where that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from runtime.call import Principal
from runtime.errors import Failure, Reason, invalid, missing
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.vault import SealedRow, Vault

if TYPE_CHECKING:
    from services.auth.garmin_credentials_store import GarminCredentialStore

MAX_CHARS: Final = {
    "garmin_username": 320,
    "garmin_password_plaintext": 1024,
    "access_token": 16_384,
    "access_token_secret": 16_384,
}
_USERNAME: Final = "garmin_username"
_PASSWORD: Final = "garmin_password_plaintext"  # noqa: S105  # the name of a field
# A change of these is a change of who can act there; fresh tokens are everyday.
_WAYS_IN: Final = (_USERNAME, _PASSWORD)


@dataclass(frozen=True, kw_only=True)
class GarminCredentials:
    """What acts at Garmin for a user."""

    account_id: UUID
    texts: Mapping[str, str] = field(repr=False)
    """By the names in MAX_CHARS; what was never given is not there."""
    expire_time: datetime | None
    """When the access token ends, as far as is known."""
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, kw_only=True)
class StoredCredentials:
    """The same as it is stored."""

    account_id: UUID
    row: SealedRow
    expire_time: datetime | None
    create_time: datetime
    update_time: datetime


class GarminCredentialVault:
    """Stores and gives out credentials."""

    def __init__(
        self,
        store: GarminCredentialStore,
        vault: Vault,
        *,
        stores_passwords: bool,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._vault = vault
        self._stores_passwords = stores_passwords
        self._now = now

    async def create(
        self, caller: Principal, account_id: UUID, given: Mapping[str, str], expire_time: datetime | None
    ) -> GarminCredentials:
        """The first credentials of a user; the same ones again are harmless.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, NOT_FOUND, ALREADY_EXISTS.
        """
        _check(given)
        if not given.get(_USERNAME, "").strip():
            raise missing(_USERNAME)
        now = self._now()
        texts = self._kept({name: text for name, text in given.items() if text})
        new = StoredCredentials(
            account_id=account_id,
            row=self._vault.seal(account_id, texts),
            expire_time=expire_time,
            create_time=now,
            update_time=now,
        )
        event = SecurityEvent(kind=Kind.GARMIN_LINKED, account_id=account_id, actor=caller.actor)
        stored = await self._store.create(new, event)
        if stored is None:
            raise Failure(Reason.NOT_FOUND, "There is no such user.")
        opened = self._opened(stored)
        if (opened.texts, opened.expire_time) != (texts, expire_time):
            raise Failure(Reason.ALREADY_EXISTS, "The user has Garmin credentials already.")
        return opened

    async def update(
        self, caller: Principal, account_id: UUID, given: Mapping[str, str], expire_time: datetime | None
    ) -> GarminCredentials:
        """Replaces what is given; an empty text takes one away.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, NOT_FOUND.
        """
        _check(given)
        if not given and expire_time is None:
            raise missing(_USERNAME)
        if not given.get(_USERNAME, "x").strip():
            raise invalid(_USERNAME, "must not be empty")
        now = self._now()

        def change(stored: StoredCredentials) -> tuple[StoredCredentials, SecurityEvent | None]:
            before = self._vault.open(account_id, stored.row)
            after = self._kept({name: text for name, text in {**before, **given}.items() if text})
            changed = [name for name in _WAYS_IN if before.get(name) != after.get(name)]
            event = SecurityEvent(
                kind=Kind.GARMIN_CHANGED,
                account_id=account_id,
                actor=caller.actor,
                detail={"changed": ",".join(changed)},
            )
            changed_row = replace(
                stored,
                row=self._vault.seal(account_id, after),
                expire_time=expire_time or stored.expire_time,
                update_time=now,
            )
            return changed_row, event if changed else None

        stored = await self._store.update(account_id, change, now)
        if stored is None:
            raise Failure(Reason.NOT_FOUND, "The user has no Garmin credentials.")
        return self._opened(stored)

    async def get(self, account_id: UUID) -> GarminCredentials:
        """A user's credentials. Raises Failure(NOT_FOUND)."""
        stored = await self._store.get(account_id)
        if stored is None:
            raise Failure(Reason.NOT_FOUND, "The user has no Garmin credentials.")
        return self._opened(stored)

    async def shown(self, account_id: UUID) -> Sequence[Mapping[str, Any]]:
        """What an export shows of a user's credentials: whose they are, and since when; nothing when there are none."""
        stored = await self._store.get(account_id)
        if stored is None:
            return ()
        name = self._opened(stored).texts[_USERNAME]
        return ({_USERNAME: name, "create_time": stored.create_time, "update_time": stored.update_time},)

    async def delete(self, caller: Principal, account_id: UUID) -> None:
        """Forgets a user's credentials, if there are any."""
        event = SecurityEvent(kind=Kind.GARMIN_UNLINKED, account_id=account_id, actor=caller.actor)
        await self._store.delete(account_id, event, self._now())

    def _kept(self, texts: Mapping[str, str]) -> dict[str, str]:
        return {name: text for name, text in texts.items() if name != _PASSWORD or self._stores_passwords}

    def _opened(self, stored: StoredCredentials) -> GarminCredentials:
        return GarminCredentials(
            account_id=stored.account_id,
            texts=self._kept(self._vault.open(stored.account_id, stored.row)),
            expire_time=stored.expire_time,
            create_time=stored.create_time,
            update_time=stored.update_time,
        )


def _check(given: Mapping[str, str]) -> None:
    for name, text in given.items():
        if len(text) > MAX_CHARS[name]:
            raise invalid(name, f"is longer than {MAX_CHARS[name]} characters", "TOO_LONG")
