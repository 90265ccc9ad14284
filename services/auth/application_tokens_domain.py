"""Owns the rules of application tokens: who makes them for whom, what they are good for, how they end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

from runtime.application_tokens import ResolvedToken, digest, new_token
from runtime.call import Principal
from runtime.config import SERVICES
from runtime.errors import Failure, Reason, invalid, missing
from runtime.mesh import DIGESTS_AT_ONCE
from services.auth.accounts import Subscription
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.users_domain import Users, actor_of

if TYPE_CHECKING:
    from services.auth.application_tokens_store import ApplicationTokenStore

MAX_NAME_CHARS: Final = 100
MAX_TOKENS: Final = 50
# How exactly the last use of a token is kept; services ask about a minute apart.
USE_PRECISION: Final = timedelta(seconds=30)
_RIGHTS: Final = ("read", "write")
SCOPES: Final = frozenset((*_RIGHTS, *(f"{service}:{right}" for service in SERVICES for right in _RIGHTS)))


@dataclass(frozen=True, kw_only=True)
class ApplicationToken:
    """A token as it is stored."""

    id: UUID
    account_id: UUID
    name: str
    scopes: frozenset[str]
    digest: bytes = field(repr=False)
    create_time: datetime
    last_use_time: datetime | None
    """To about a minute."""
    expire_time: datetime | None
    revoke_time: datetime | None


@dataclass(frozen=True, kw_only=True)
class HeldToken:
    """A token with what it says of its owner."""

    token: ApplicationToken
    tenant_id: int
    subscription: Subscription


class ApplicationTokens:
    """Creates, changes, lists and resolves tokens."""

    def __init__(self, store: ApplicationTokenStore, users: Users, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._users = users
        self._now = now

    async def create(
        self,
        caller: Principal,
        account_id: UUID,
        *,
        name: str,
        scopes: Sequence[str],
        expire_time: datetime | None,
    ) -> tuple[ApplicationToken, str]:
        """A new token with its secret.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, FORBIDDEN, NOT_FOUND, ALREADY_EXISTS.
        """
        now = self._now()
        name = _name(name)
        if not scopes:
            raise missing("scopes")
        if expire_time is not None and expire_time <= now:
            raise invalid("expires_at", "is in the past")
        await self._users.get(caller, account_id)
        secret = new_token()
        token = ApplicationToken(
            id=uuid4(),
            account_id=account_id,
            name=name,
            scopes=parse_scopes("scopes", scopes),
            digest=digest(secret),
            create_time=now,
            last_use_time=None,
            expire_time=expire_time,
            revoke_time=None,
        )
        event = _event(Kind.APPLICATION_TOKEN_CREATED, caller, token)
        await self._store.create(token, event, MAX_TOKENS, by=caller.own_sign_in_id)
        return token, secret

    async def update(
        self, caller: Principal, account_id: UUID, token_id: UUID | None, *, name: str, rotate: bool, revoke: bool
    ) -> tuple[ApplicationToken, str]:
        """Renames, rotates or ends a token; the secret of its successor, or nothing.

        Raises Failure: FIELD_MISSING (no id, where there are several), FIELD_INVALID, FORBIDDEN, NOT_FOUND.
        """
        if rotate and revoke:
            raise invalid("revoke", "cannot go with rotate", "CONFLICTING")
        if name:
            name = _name(name)
        elif not (rotate or revoke):
            raise missing("name")
        await self._users.get(caller, account_id)
        now = self._now()
        secret = new_token() if rotate else ""

        def change(live: Sequence[ApplicationToken]) -> tuple[ApplicationToken, ApplicationToken | None, SecurityEvent]:
            token = _chosen(live, token_id)
            if revoke:
                token = replace(token, revoke_time=now)
                return token, None, _event(Kind.APPLICATION_TOKEN_REVOKED, caller, token)
            token = replace(token, name=name or token.name)
            event = _event(Kind.APPLICATION_TOKEN_CHANGED, caller, token, rotated=int(rotate))
            if not rotate:
                return token, None, event
            successor = replace(token, id=uuid4(), digest=digest(secret), create_time=now, last_use_time=None)
            return replace(token, revoke_time=now), successor, event

        return await self._store.update(account_id, change, now, by=caller.own_sign_in_id), secret

    async def list(self, caller: Principal, account_id: UUID) -> list[ApplicationToken]:
        """The tokens that were not ended, newest first. Raises Failure: FORBIDDEN, NOT_FOUND."""
        await self._users.get(caller, account_id)
        return await self._store.live(account_id)

    async def resolve(self, digests: Sequence[bytes]) -> dict[bytes, ResolvedToken]:
        """Those of the tokens that there ever were, by digest, for a service that has just met them.

        Raises Failure(FIELD_INVALID).
        """
        if len(digests) > DIGESTS_AT_ONCE:
            raise invalid("digests", f"are more than {DIGESTS_AT_ONCE}", "TOO_LONG")
        now = self._now()
        held = await self._store.held(digests)
        live = [one.token.id for one in held if one.token.revoke_time is None]
        await self._store.used(live, now, now - USE_PRECISION)
        return {one.token.digest: _resolved(one, now) for one in held}

    async def resolve_one(self, digest: bytes) -> ResolvedToken | None:
        """One of them. None: there never was such a token."""
        return (await self.resolve([digest])).get(digest)


def parse_scopes(field: str, scopes: Sequence[str]) -> frozenset[str]:
    """Scopes that exist. Raises Failure(FIELD_INVALID)."""
    if unknown := [one for one in scopes if one not in SCOPES]:
        shown = unknown[0] if unknown[0].isprintable() and len(unknown[0]) <= 40 else "one of them"
        raise invalid(
            field, f"{shown} is no scope; read and write are, and sessions:read and the like", "UNKNOWN_VALUE"
        )
    return frozenset(scopes)


def _name(text: str) -> str:
    name = text.strip()
    if not name:
        raise missing("name")
    if len(name) > MAX_NAME_CHARS:
        raise invalid("name", f"is longer than {MAX_NAME_CHARS} characters", "TOO_LONG")
    if not name.isprintable():
        raise invalid("name", "holds characters that cannot be shown", "INVALID_FORMAT")
    return name


def _chosen(live: Sequence[ApplicationToken], token_id: UUID | None) -> ApplicationToken:
    if token_id is None and len(live) > 1:
        raise missing("id")
    for token in live:
        if token_id in (None, token.id):
            return token
    raise Failure(Reason.NOT_FOUND, "There is no such token.")


def _event(kind: Kind, caller: Principal, token: ApplicationToken, **detail: int) -> SecurityEvent:
    return SecurityEvent(
        kind=kind,
        account_id=token.account_id,
        sign_in_id=token.id,
        actor=actor_of(caller, token.account_id),
        detail={"scopes": " ".join(sorted(token.scopes)), **detail},
    )


def _resolved(held: HeldToken, now: datetime) -> ResolvedToken:
    token = held.token
    return ResolvedToken(
        id=token.id,
        user_id=token.account_id,
        tenant_id=held.tenant_id,
        tier=held.subscription.at(now).tier,
        scopes=token.scopes,
        expires_at=token.expire_time.timestamp() if token.expire_time else math.inf,
        revoked=token.revoke_time is not None,
    )
