"""Owns the rules of second factors: what turns one on and off, and what passes it when an account signs in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from runtime.call import Principal
from runtime.errors import Failure, Reason, Violation, missing
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.passwords import Passwords
from services.auth.second_factors_codes import (
    CodeKind,
    new_recovery_codes,
    new_totp_secret,
    otpauth_uri,
    parse_code,
    recovery_digest,
    step_of,
)
from services.auth.vault import SealedRow, Vault

if TYPE_CHECKING:
    from services.auth.events_store import EventStore
    from services.auth.second_factors_store import SecondFactorStore

ISSUER: Final = "Satchel"
# The sealed column.
SECRET: Final = "sealed_secret"  # noqa: S105  # its name
# Who has just signed in has just shown a password, or whatever else the account is known by.
FRESH: Final = timedelta(minutes=10)
# Three codes of a million are good at any moment: five guesses in five minutes find one once in eight months' trying.
TRIES: Final = 5
# Nobody guesses 80 bits. The limit is its own, so that who keeps the first one used up does not lock the owner out.
RECOVERY_TRIES: Final = 30
TRIES_WINDOW: Final = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class SecondFactorState:
    """What an owner sees of a second factor."""

    enable_time: datetime | None
    """None: signing in takes no code."""
    recovery_codes_left: int


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Whose second factor it is, as far as its rules have to know."""

    email: str
    password_hash: str = field(repr=False)
    """Empty: the account has no password."""
    sign_in_time: datetime
    """When the sign-in that asks was begun."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A second factor that is to be confirmed."""

    secret: str
    uri: str

    def __repr__(self) -> str:
        return "Begun()"


@dataclass(frozen=True, kw_only=True)
class Try:
    """A guess that was counted."""

    sealed: SealedRow
    enabled: bool
    allowed: bool
    """False: too many were counted before it."""
    retry_after: float
    """Seconds until the count begins anew."""


class SecondFactors:
    """Turns second factors on and off, and asks for their codes."""

    def __init__(
        self,
        store: SecondFactorStore,
        events: EventStore,
        vault: Vault,
        passwords: Passwords,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._events = events
        self._vault = vault
        self._passwords = passwords
        self._now = now

    async def state(self, caller: Principal) -> SecondFactorState:
        """The caller's second factor."""
        return await self._store.state(caller.user_id)

    async def begin(self, caller: Principal, password: str) -> Begun:
        """A new secret, which nothing asks for before it is confirmed.

        Raises Failure: FIELD_MISSING, INVALID_CREDENTIALS, SECOND_FACTOR_ENABLED, FORBIDDEN to whom another issuer
        signs in.
        """
        if caller.issuer:
            raise Failure(Reason.FORBIDDEN, "Who signs you in is who may ask for a second factor.")
        owner = await self._proven(caller, password)
        secret = new_totp_secret()
        sealed = self._vault.seal(caller.user_id, {SECRET: secret})
        if not await self._store.begin(caller.user_id, sealed, self._now()):
            raise Failure(Reason.SECOND_FACTOR_ENABLED)
        uri = otpauth_uri(secret, account=owner.email or str(caller.user_id), issuer=ISSUER)
        return Begun(secret=secret, uri=uri)

    async def confirm(self, caller: Principal, code: str) -> list[str]:
        """Turns the second factor on; returns its recovery codes.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, NOT_FOUND, SECOND_FACTOR_ENABLED, SECOND_FACTOR_INVALID,
        RATE_LIMITED.
        """
        kind, parsed = parse_code(code)
        step, sealed = await self._guess(caller.user_id, kind, parsed, pending=True)
        codes = new_recovery_codes()
        digests = [recovery_digest(caller.user_id, one) for one in codes]
        event = self._event(Kind.SECOND_FACTOR_ENABLED, caller)
        if not await self._store.enable(caller.user_id, sealed, step, digests, self._now(), event):
            raise Failure(Reason.SECOND_FACTOR_ENABLED)
        return codes

    async def disable(self, caller: Principal, code: str, password: str) -> None:
        """Turns the second factor off.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, INVALID_CREDENTIALS, NOT_FOUND, SECOND_FACTOR_INVALID,
        RATE_LIMITED.
        """
        parse_code(code)
        if (await self._store.state(caller.user_id)).enable_time is None:
            raise _none()
        await self._proven(caller, password)
        await self._pass(caller.user_id, code)
        await self._store.disable(caller.user_id, self._now(), self._event(Kind.SECOND_FACTOR_DISABLED, caller))

    async def renew_recovery_codes(self, caller: Principal, code: str) -> list[str]:
        """New recovery codes in place of those of before.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, NOT_FOUND, SECOND_FACTOR_INVALID, RATE_LIMITED.
        """
        parse_code(code)
        if (await self._store.state(caller.user_id)).enable_time is None:
            raise _none()
        await self._pass(caller.user_id, code)
        codes = new_recovery_codes()
        digests = [recovery_digest(caller.user_id, one) for one in codes]
        event = self._event(Kind.RECOVERY_CODES_RENEWED, caller)
        await self._store.renew(caller.user_id, digests, self._now(), event)
        return codes

    async def require(self, account_id: UUID, code: str) -> None:
        """Lets an account pass that has no second factor, or with a code of it, which is used up then.

        Whatever else it is that signs somebody in asks this first. Raises Failure: SECOND_FACTOR_REQUIRED,
        FIELD_INVALID, SECOND_FACTOR_INVALID, RATE_LIMITED.
        """
        if (await self._store.state(account_id)).enable_time is None:
            return
        if not code.strip():
            raise _refused(Reason.SECOND_FACTOR_REQUIRED)
        await self._pass(account_id, code)

    async def _pass(self, account_id: UUID, code: str) -> None:
        kind, parsed = parse_code(code)
        if kind == "totp":
            step, _ = await self._guess(account_id, kind, parsed)
            if not await self._store.use_step(account_id, step):
                raise await self._wrong(account_id, kind)
            return
        counted = await self._counted(account_id, kind)
        if not counted.enabled:
            raise _none()
        used = SecurityEvent(kind=Kind.RECOVERY_CODE_USED, account_id=account_id)
        if not await self._store.use_recovery_code(account_id, recovery_digest(account_id, parsed), self._now(), used):
            raise await self._wrong(account_id, kind)

    async def _guess(
        self, account_id: UUID, kind: CodeKind, code: str, *, pending: bool = False
    ) -> tuple[int, SealedRow]:
        """The step that a code is of, counted as a try before it is looked at, and the secret that it is of."""
        counted = await self._counted(account_id, "totp")
        if counted.enabled == pending:
            raise Failure(Reason.SECOND_FACTOR_ENABLED) if pending else _none()
        step = None
        if kind == "totp":
            step = step_of(self._vault.open(account_id, counted.sealed)[SECRET], code, self._now())
        if step is None:
            raise await self._wrong(account_id, kind)
        return step, counted.sealed

    async def _counted(self, account_id: UUID, kind: CodeKind) -> Try:
        most = RECOVERY_TRIES if kind == "recovery" else TRIES
        counted = await self._store.count(account_id, kind, most=most, window=TRIES_WINDOW, now=self._now())
        if counted is None:
            raise _none()
        if not counted.allowed:
            message = "Too many wrong codes; try again later, or with a recovery code."
            raise Failure(Reason.RATE_LIMITED, message, retry_after=counted.retry_after)
        return counted

    async def _wrong(self, account_id: UUID, kind: CodeKind) -> Failure:
        failed = SecurityEvent(kind=Kind.SECOND_FACTOR_FAILED, account_id=account_id, detail={"code": kind})
        await self._events.record(failed, self._now())
        return _refused(Reason.SECOND_FACTOR_INVALID)

    async def _proven(self, caller: Principal, password: str) -> Owner:
        """The caller, who is more than a token that was left lying about."""
        owner = await self._store.owner(caller.user_id, caller.sign_in_id)
        if owner is None:
            raise Failure(Reason.INVALID_TOKEN)
        if password:
            if await self._passwords.verify(owner.password_hash or None, password):
                return owner
            failed = SecurityEvent(
                kind=Kind.SECOND_FACTOR_FAILED,
                account_id=caller.user_id,
                sign_in_id=caller.sign_in_id,
                detail={"code": "password"},
            )
            await self._events.record(failed, self._now())
            raise Failure(Reason.INVALID_CREDENTIALS, "The password is incorrect.")
        if self._now() - owner.sign_in_time > FRESH:
            raise missing("password")
        return owner

    def _event(self, kind: Kind, caller: Principal) -> SecurityEvent:
        return SecurityEvent(kind=kind, account_id=caller.user_id, sign_in_id=caller.sign_in_id)


def _none() -> Failure:
    return Failure(Reason.NOT_FOUND, "The account has no second factor.")


def _refused(reason: Reason) -> Failure:
    return Failure(reason, violations=[Violation("code", reason.name)])
