"""Owns the rules of sign-ins: what a device gets for one, when its tokens are good, what ends it."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

from runtime.addresses import network_of
from runtime.call import Principal, Role
from runtime.errors import Failure, Reason, Violation, invalid, missing
from runtime.identity import ACCESS_TOKEN_SECONDS
from services.auth.accounts import Account
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.tokens import AccessTokens, new_secret, parse_refresh_token, refresh_token

if TYPE_CHECKING:
    from services.auth.events_store import EventStore
    from services.auth.second_factors_domain import SecondFactors
    from services.auth.sign_ins_store import SignInStore

REFRESH_TOKEN_LIFETIME: Final = timedelta(days=30)
MAX_DEVICE_NAME_CHARS: Final = 100
# Live ones of an account; for one more the least recently used one goes.
MAX_SIGN_INS: Final = 100
# So long after its end a sign-in is remembered: a token of its is known as ours, and its place as one of its owner's.
MEMORY: Final = timedelta(days=30)
TOKEN_KEY_BYTES: Final = 32
# A transaction takes its time stamp before it commits: asking a little into the past misses none of them.
REVOCATION_OVERLAP: Final = timedelta(seconds=30)

_DEVICE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where somebody signs in from."""

    name: str
    """What it calls itself."""
    ip: str
    user_agent: str
    key: str = ""
    """What tells it from others wherever it is: the digest of the id it sends with its calls; empty: it sends none."""

    @property
    def network(self) -> str:
        """The party that its address belongs to."""
        return network_of(self.ip)


@dataclass(frozen=True, kw_only=True)
class SignIn:
    """One device's sign-in, as it is stored."""

    id: UUID
    account_id: UUID
    device: Device
    method: str
    """How it came about, such as password."""
    token_key: bytes = field(repr=False)
    """Behind the tags of its refresh tokens."""
    current_digest: bytes = field(repr=False)
    """sha256 of the secret of the refresh token it stands at."""
    create_time: datetime
    expire_time: datetime
    role: str = ""
    """The account's that its first access token was made from: it is not stored once that has changed. Empty: any."""


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """What became of a presented refresh token."""

    account_id: UUID
    token_key: bytes = field(repr=False)
    sealed_successor: bytes | None = field(repr=False)
    expire_time: datetime
    revoke_time: datetime | None
    rotated: bool
    """It was the last one, and its successor is the one that came with it."""
    repeated: bool
    """It was the one before, and its successor is the sealed one."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What a phone gets for signing in."""

    access: str = field(repr=False)
    refresh: str = field(repr=False)


class SignIns:
    """Begins, refreshes and ends sign-ins."""

    def __init__(
        self,
        store: SignInStore,
        events: EventStore,
        access_tokens: AccessTokens,
        second_factors: SecondFactors,
        *,
        account: Callable[[UUID], Awaitable[Account]],
        role_of: Callable[[Account], Role],
        now: Callable[[], datetime],
    ) -> None:
        """`account` finds an account or raises Failure(INVALID_TOKEN); `role_of` is what one signs in as."""
        self._store = store
        self._events = events
        self._access_tokens = access_tokens
        self._second_factors = second_factors
        self._account = account
        self._role_of = role_of
        self._now = now

    def prepare(self, account: Account, device: Device, method: str) -> tuple[SignIn, Tokens]:
        """A sign-in that is still to be stored, and what its device gets. Raises Failure(FIELD_INVALID).

        Nobody has been asked for a second factor: who prepares a sign-in of an account that may have one does that.
        """
        check_device_name(device.name)
        now, sign_in_id, secret = self._now(), uuid4(), new_secret()
        token_key = secrets.token_bytes(TOKEN_KEY_BYTES)
        token = refresh_token(sign_in_id, secret, token_key)
        sign_in = SignIn(
            id=sign_in_id,
            account_id=account.id,
            device=device,
            method=method,
            token_key=token_key,
            current_digest=token.digest,
            create_time=now,
            expire_time=now + REFRESH_TOKEN_LIFETIME,
            role=account.role,
        )
        return sign_in, Tokens(access=self._access_token(account, sign_in_id), refresh=str(token))

    async def begin(
        self, account: Account, device: Device, method: str, *, password_hash: str | None = None, code: str = ""
    ) -> Tokens:
        """Signs a device in, with a `code` where the account has a second factor, whatever the method.

        `password_hash` is that of the password that was shown, if one was. Raises Failure: FIELD_INVALID,
        INVALID_CREDENTIALS when the account is gone or that password was changed, and as SecondFactors.require.
        """
        sign_in, tokens = self.prepare(account, device, method)
        await self._second_factors.require(account.id, code)
        event = SecurityEvent(
            kind=Kind.SIGNED_IN,
            account_id=account.id,
            sign_in_id=sign_in.id,
            detail={"method": method},
        )
        await self._store.create(sign_in, event, password_hash)
        return tokens

    async def refresh(self, text: str, device: Device) -> Tokens:
        """The successor of a refresh token, with an access token; `device` is where it is asked for.

        Raises Failure: FIELD_MISSING, INVALID_TOKEN, TOKEN_EXPIRED, TOKEN_REVOKED (also for one that was used before
        the last: that one is reuse, and its sign-in has been ended).
        """
        if not text:
            raise missing("refresh_token")
        try:
            return await self._successor(text, device)
        except Failure as failure:
            if failure.reason not in (Reason.INVALID_TOKEN, Reason.TOKEN_EXPIRED, Reason.TOKEN_REVOKED):
                raise
            # Not the token of the header, which this call does not need.
            violation = Violation("refresh_token", failure.reason.name)
            raise Failure(failure.reason, f"refresh_token: {failure.message}", violations=[violation]) from None

    async def _successor(self, text: str, device: Device) -> Tokens:
        presented = parse_refresh_token(text)
        now = self._now()
        secret = new_secret()
        rotation = await self._store.rotate(
            presented.sign_in_id,
            presented=presented.digest,
            tag=presented.tag,
            successor=hashlib.sha256(secret).digest(),
            sealed_successor=presented.seal(secret),
            device=device,
            now=now,
            expire_time=now + REFRESH_TOKEN_LIFETIME,
        )
        if rotation is None:
            raise Failure(Reason.INVALID_TOKEN)
        if rotation.revoke_time == now and not (rotation.rotated or rotation.repeated):
            await self._events.record(
                SecurityEvent(kind=Kind.TOKEN_REUSED, account_id=rotation.account_id, sign_in_id=presented.sign_in_id),
                now,
            )
        if rotation.revoke_time is not None:
            raise Failure(Reason.TOKEN_REVOKED)
        if rotation.expire_time <= now:
            raise Failure(Reason.TOKEN_EXPIRED)
        if not rotation.rotated:
            secret = presented.unseal(rotation.sealed_successor or b"")
        account = await self._account(rotation.account_id)
        successor = refresh_token(presented.sign_in_id, secret, rotation.token_key)
        return Tokens(access=self._access_token(account, presented.sign_in_id), refresh=str(successor))

    async def sign_out(self, caller: Principal, scope: str) -> int:
        """Ends the caller's sign-ins; returns how many. Raises Failure(FIELD_INVALID)."""
        if scope not in ("", "this", "others", "all"):
            raise invalid("scope", "must be this, others or all", "UNKNOWN_VALUE")
        event = SecurityEvent(
            kind=Kind.SIGNED_OUT,
            account_id=caller.user_id,
            sign_in_id=caller.sign_in_id,
            detail={"scope": scope or "this"},
        )
        return await self._store.end(
            caller.user_id,
            caller.sign_in_id,
            this=scope != "others",
            others=scope in ("others", "all"),
            now=self._now(),
            event=event,
        )

    async def revoked_since(self, since: datetime | None) -> tuple[list[UUID], datetime]:
        """Sign-ins ended since whose access tokens may be alive, and the moment to ask from next."""
        now = self._now()
        oldest = now - timedelta(seconds=ACCESS_TOKEN_SECONDS) - REVOCATION_OVERLAP
        ended = await self._store.revoked_since(max(since or oldest, oldest))
        return ended, now - REVOCATION_OVERLAP

    def _access_token(self, account: Account, sign_in_id: UUID) -> str:
        return self._access_tokens.mint(
            Principal(
                user_id=account.id,
                sign_in_id=sign_in_id,
                tenant_id=account.tenant_id,
                role=self._role_of(account),
                tier=account.subscription.tier,
                guest=account.is_guest,
            )
        )


def check_device_name(name: str) -> None:
    """Raises Failure(FIELD_INVALID) for a name that is too long or holds control characters."""
    if len(name) > MAX_DEVICE_NAME_CHARS:
        raise invalid("device_name", f"is longer than {MAX_DEVICE_NAME_CHARS} characters", "TOO_LONG")
    if not all(character.isprintable() for character in name):
        raise invalid("device_name", "holds characters that cannot be shown", "INVALID_FORMAT")


def device_key(device_id: str) -> str:
    """What is stored of the id that a device sends with its calls; empty for none, or for what is no such id."""
    return hashlib.sha256(device_id.encode()).hexdigest() if _DEVICE_ID.fullmatch(device_id) else ""
