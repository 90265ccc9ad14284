"""Owns the rules of accounts and sign-ins: who may have one, when a token is good, what ends it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal
from uuid import UUID, uuid4

from email_validator import EmailNotValidError, validate_email

from runtime.call import Principal, Role
from runtime.coalesce import Coalesced
from runtime.errors import Failure, Reason, invalid, missing
from runtime.identity import ACCESS_TOKEN_SECONDS
from services.auth.passwords import Passwords, check_password
from services.auth.tokens import AccessTokens, new_secret, parse_refresh_token, refresh_token

if TYPE_CHECKING:
    from services.auth.store import AuthStore

REFRESH_TOKEN_LIFETIME: Final = timedelta(days=30)
DEFAULT_TENANT: Final = 1
FREE_TIER: Final = "free"
MAX_DEVICE_NAME_CHARS: Final = 100
TOKEN_KEY_BYTES: Final = 32
# A transaction takes its time stamp before it commits: asking a little into the past misses none of them.
REVOCATION_OVERLAP: Final = timedelta(seconds=30)

SignOutScope = Literal["this", "others", "all"]


@dataclass(frozen=True, kw_only=True)
class Subscription:
    """What an account has paid for, as it is stored."""

    tier: str
    status: str
    """active, inactive or cancelled; `at` adds expired."""
    end_time: datetime | None
    cancel_at_period_end: bool

    def at(self, now: datetime) -> Subscription:
        """The subscription as it stands at `now`: past its end it is expired, and the tier is free."""
        if self.end_time is None or self.end_time > now:
            return self
        return replace(self, tier=FREE_TIER, status="expired")


@dataclass(frozen=True, kw_only=True)
class Account:
    """Somebody who can sign in."""

    id: UUID
    email: str
    """Lower case."""
    tenant_id: int
    role: Role
    create_time: datetime
    subscription: Subscription

    def at(self, now: datetime) -> Account:
        """The account with the expiry of its subscription judged at `now`."""
        judged = self.subscription.at(now)
        return self if judged is self.subscription else replace(self, subscription=judged)


@dataclass(frozen=True, kw_only=True)
class SignIn:
    """One device's sign-in, as it is stored."""

    id: UUID
    account_id: UUID
    device_name: str
    ip: str
    token_key: bytes
    """Behind the tags of its refresh tokens."""
    current_digest: bytes
    """sha256 of the secret of the refresh token it stands at."""
    create_time: datetime
    expire_time: datetime


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """What became of a presented refresh token."""

    account_id: UUID
    token_key: bytes
    sealed_successor: bytes | None
    expire_time: datetime
    revoke_time: datetime | None
    rotated: bool
    """It was the last one, and its successor is the one that came with it."""
    repeated: bool
    """It was the one before, and its successor is the sealed one."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What a phone gets for signing in."""

    access: str
    refresh: str


class Accounts:
    """Sign-up, sign-in, refresh and sign-out."""

    def __init__(
        self,
        store: AuthStore,
        passwords: Passwords,
        access_tokens: AccessTokens,
        *,
        admin_email: str,
        deleted: Callable[[], None],
        now: Callable[[], datetime],
    ) -> None:
        """The account with `admin_email` signs in as administrator of its tenant; empty: nobody does.

        `deleted` is told that an account was deleted, and that there is something to erase elsewhere.
        """
        self._store = store
        self._passwords = passwords
        self._access_tokens = access_tokens
        self._admin_email = admin_email.strip().lower()
        self._deleted = deleted
        self._now = now
        self._by_id = Coalesced(store.accounts)

    async def sign_up(
        self, *, email: str, password: str, tenant_id: int, device_name: str, ip: str
    ) -> tuple[Account, Tokens]:
        """A new account, signed in. Raises Failure: FIELD_MISSING, FIELD_INVALID, EMAIL_REGISTERED."""
        address = parse_email(email)
        check_password(password)
        if tenant_id < 0:
            raise invalid("tenant_id", "must be 1 or more")
        check_device_name(device_name)
        account = Account(
            id=uuid4(),
            email=address,
            tenant_id=tenant_id or DEFAULT_TENANT,
            role="user",
            create_time=self._now(),
            subscription=Subscription(tier=FREE_TIER, status="inactive", end_time=None, cancel_at_period_end=False),
        )
        password_hash = await self._passwords.hash(password)
        sign_in, refresh = self._new_sign_in(account, device_name, ip)
        await self._store.create_account(account, password_hash, sign_in)
        return account, Tokens(access=self._access_token(account, sign_in.id), refresh=refresh)

    async def sign_in(self, *, email: str, password: str, device_name: str, ip: str) -> tuple[Account, Tokens]:
        """A new sign-in. Raises Failure: FIELD_MISSING, or INVALID_CREDENTIALS whichever of the two was wrong."""
        if not email.strip():
            raise missing("email")
        if not password:
            raise missing("password")
        check_device_name(device_name)
        try:
            address = parse_email(email)
        except Failure:
            address = ""  # nobody's; it takes as long to refuse as anybody's
        found = await self._store.account_by_email(address)
        if not await self._passwords.verify(found[1] if found else None, password) or found is None:
            raise Failure(Reason.INVALID_CREDENTIALS)
        account = found[0].at(self._now())
        sign_in, refresh = self._new_sign_in(account, device_name, ip)
        await self._store.create_sign_in(sign_in)
        return account, Tokens(access=self._access_token(account, sign_in.id), refresh=refresh)

    async def refresh(self, text: str) -> Tokens:
        """The successor of a refresh token, with an access token.

        Raises Failure: FIELD_MISSING, INVALID_TOKEN, TOKEN_EXPIRED, TOKEN_REVOKED (also for one that was used before
        the last: that one is reuse, and its sign-in has been ended).
        """
        if not text:
            raise missing("refresh_token")
        presented = parse_refresh_token(text)
        now = self._now()
        secret = new_secret()
        rotation = await self._store.rotate(
            presented.sign_in_id,
            presented=presented.digest,
            tag=presented.tag,
            successor=hashlib.sha256(secret).digest(),
            sealed_successor=presented.seal(secret),
            now=now,
            expire_time=now + REFRESH_TOKEN_LIFETIME,
        )
        if rotation is None:
            raise Failure(Reason.INVALID_TOKEN)
        if rotation.revoke_time is not None:
            raise Failure(Reason.TOKEN_REVOKED)
        if rotation.expire_time <= now:
            raise Failure(Reason.TOKEN_EXPIRED)
        if not rotation.rotated:
            secret = presented.unseal(rotation.sealed_successor or b"")
        account = await self.account(rotation.account_id)
        successor = refresh_token(presented.sign_in_id, secret, rotation.token_key)
        return Tokens(access=self._access_token(account, presented.sign_in_id), refresh=str(successor))

    async def sign_out(self, caller: Principal, scope: str) -> int:
        """Ends the caller's sign-ins; returns how many. Raises Failure(FIELD_INVALID)."""
        if scope not in ("", "this", "others", "all"):
            raise invalid("scope", "must be this, others or all", "UNKNOWN_VALUE")
        return await self._store.end_sign_ins(
            caller.user_id,
            caller.sign_in_id,
            this=scope != "others",
            others=scope in ("others", "all"),
            now=self._now(),
        )

    async def account(self, account_id: UUID) -> Account:
        """An account as it stands. Raises Failure(INVALID_TOKEN) when it is gone: a token was all that was left."""
        account = await self._by_id.get(account_id)
        if account is None:
            raise Failure(Reason.INVALID_TOKEN)
        return account.at(self._now())

    async def delete(self, caller: Principal) -> datetime:
        """Ends the caller's account and all its sign-ins; returns when, also the second time."""
        delete_time = await self._store.delete_account(caller.user_id, self._now())
        self._deleted()
        return delete_time

    async def revoked_since(self, since: datetime | None) -> tuple[list[UUID], datetime]:
        """Sign-ins ended since whose access tokens may be alive, and the moment to ask from next."""
        now = self._now()
        oldest = now - timedelta(seconds=ACCESS_TOKEN_SECONDS) - REVOCATION_OVERLAP
        ended = await self._store.revoked_since(max(since or oldest, oldest))
        return ended, now - REVOCATION_OVERLAP

    def _new_sign_in(self, account: Account, device_name: str, ip: str) -> tuple[SignIn, str]:
        now, sign_in_id, secret = self._now(), uuid4(), new_secret()
        token_key = secrets.token_bytes(TOKEN_KEY_BYTES)
        token = refresh_token(sign_in_id, secret, token_key)
        sign_in = SignIn(
            id=sign_in_id,
            account_id=account.id,
            device_name=device_name.strip(),
            ip=ip,
            token_key=token_key,
            current_digest=token.digest,
            create_time=now,
            expire_time=now + REFRESH_TOKEN_LIFETIME,
        )
        return sign_in, str(token)

    def _access_token(self, account: Account, sign_in_id: UUID) -> str:
        is_admin = account.role == "admin" or (self._admin_email and account.email == self._admin_email)
        return self._access_tokens.mint(
            Principal(
                user_id=account.id,
                sign_in_id=sign_in_id,
                tenant_id=account.tenant_id,
                role="admin" if is_admin else "user",
                tier=account.subscription.tier,
            )
        )


def parse_email(text: str) -> str:
    """The address in the form it is stored and compared in. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
    trimmed = text.strip()
    if not trimmed:
        raise missing("email")
    try:
        # Whether mail arrives is another matter; a private network's names are as good as the world's.
        checked = validate_email(trimmed.lower(), check_deliverability=False, globally_deliverable=False)
    except EmailNotValidError:
        raise invalid("email", "is not an e-mail address", "INVALID_FORMAT") from None
    if "." not in checked.domain or len(checked.normalized) > 254:
        raise invalid("email", "is not an e-mail address", "INVALID_FORMAT")
    return checked.normalized


def check_device_name(name: str) -> None:
    """Raises Failure(FIELD_INVALID) for a name that is too long or holds control characters."""
    if len(name) > MAX_DEVICE_NAME_CHARS:
        raise invalid("device_name", f"is longer than {MAX_DEVICE_NAME_CHARS} characters", "TOO_LONG")
    if not all(character.isprintable() for character in name):
        raise invalid("device_name", "holds characters that cannot be shown", "INVALID_FORMAT")
