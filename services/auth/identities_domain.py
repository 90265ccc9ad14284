"""Owns the rules of identities: which account one opens, how it comes to open one, and how that ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeAlias
from uuid import UUID, uuid4

from runtime.call import Principal
from runtime.errors import Failure, Reason, invalid
from services.auth.accounts import DEFAULT_TENANT, NO_SUBSCRIPTION, Account
from services.auth.accounts_domain import KnownAccounts
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.identities import Identity, method_of
from services.auth.providers import MAX_NAME_CHARS, Providers
from services.auth.sign_ins_domain import Device, SignIns, Tokens, check_device_name

if TYPE_CHECKING:
    from services.auth.events_store import EventStore
    from services.auth.identities_store import IdentityStore
    from services.auth.second_factors_domain import SecondFactors

# What is found may have changed when it is to be used; whoever is that often overtaken is not alone.
TRIES: Final = 5

Opened: TypeAlias = "tuple[Account, Tokens, bool]"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Somebody who signs in, as long as that takes."""

    identity: Identity
    tenant_id: int
    device: Device
    code: str = field(repr=False)
    guest_id: UUID | None
    """Who calls as a guest; None: no guest does."""
    passed: set[UUID] = field(default_factory=set)
    """Accounts whose second factor was asked for and given: a code is good once."""


class Identities:
    """Sign-in by id token, and the identities of an account."""

    def __init__(
        self,
        store: IdentityStore,
        events: EventStore,
        providers: Providers,
        known: KnownAccounts,
        sign_ins: SignIns,
        second_factors: SecondFactors,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._events = events
        self._providers = providers
        self._known = known
        self._sign_ins = sign_ins
        self._second_factors = second_factors
        self._now = now

    async def sign_in(
        self,
        *,
        provider: str,
        id_token: str,
        nonce: str,
        full_name: str,
        tenant_id: int,
        code: str,
        device: Device,
        caller: Principal | None = None,
    ) -> Opened:
        """The account that an id token opens, signed in, and whether it is new; a new one is the guest's who calls.

        Raises Failure: NOT_FOUND, FIELD_MISSING, FIELD_INVALID, INVALID_TOKEN, TOKEN_EXPIRED, IDENTITY_TAKEN,
        NOT_A_GUEST, UNAVAILABLE, and as SecondFactors.require.
        """
        guest = caller if caller is not None and caller.guest else None
        issuer = self._providers.provider(provider)
        if tenant_id < 0:
            raise invalid("tenant_id", "must be 1 or more")
        if guest is not None and tenant_id not in (0, guest.tenant_id):
            raise invalid("tenant_id", "must be the guest's")
        check_device_name(device.name)
        name = _checked_name(full_name)
        try:
            identity = await issuer.identity(id_token, nonce)
        except Failure as failure:
            if failure.reason in (Reason.INVALID_TOKEN, Reason.TOKEN_EXPIRED):
                detail = {"method": method_of(provider)}
                event = SecurityEvent(kind=Kind.SIGN_IN_FAILED, account_id=None, detail=detail)
                await self._events.fold(event, self._now())
            raise
        asked = _Asked(
            identity=replace(identity, full_name=name or identity.full_name),
            tenant_id=tenant_id or DEFAULT_TENANT,
            device=device,
            code=code,
            guest_id=guest.user_id if guest is not None else None,
        )
        for _ in range(TRIES):
            opened = await self._open(asked)
            if opened is not None:
                return opened
        raise Failure(Reason.UNAVAILABLE, retry_after=1)

    async def link(self, caller: Principal, *, provider: str, id_token: str, nonce: str) -> Identity:
        """Lets the identity of an id token open the caller's account too, which is no guest's after that.

        Raises Failure as `sign_in` does, and EMAIL_REGISTERED to a guest whose address another account has.
        """
        identity = await self._providers.provider(provider).identity(id_token, nonce)
        account = await self._known.of(caller)
        event = SecurityEvent(
            kind=Kind.IDENTITY_LINKED,
            account_id=account.id,
            sign_in_id=caller.sign_in_id,
            detail={"provider": provider},
        )
        signed_up = _signed_up_guest(event, identity)
        return await self._store.link(account.id, identity, event, signed_up=signed_up, by=caller.own_sign_in_id)

    async def unlink(self, caller: Principal, provider: str) -> int:
        """Ends that an identity opens the caller's account; returns how many sign-ins ended with it.

        Raises Failure: NOT_FOUND, LAST_WAY_IN.
        """
        event = SecurityEvent(
            kind=Kind.IDENTITY_UNLINKED,
            account_id=caller.user_id,
            sign_in_id=caller.sign_in_id,
            detail={"provider": provider},
        )
        return await self._store.unlink(
            caller.user_id, provider, keep=caller.sign_in_id, method=method_of(provider), now=self._now(), event=event
        )

    async def identities(self, caller: Principal) -> Sequence[Identity]:
        """Those that open the caller's account, oldest first."""
        return await self._store.identities((await self._known.of(caller)).id)

    async def _open(self, asked: _Asked) -> Opened | None:
        """None: what was found has changed meanwhile."""
        identity = asked.identity
        account = await self._store.account_of(identity)
        if account is not None:
            return await self._open_known(account.at(self._now()), asked)
        if identity.proved_email:
            account = await self._store.account_by_email(identity.proved_email)
            if account is not None:
                return await self._open_by_email(account.at(self._now()), asked)
        if asked.guest_id is not None:
            return await self._open_guest(asked.guest_id, asked)
        return await self._open_new(asked)

    async def _open_known(self, account: Account, asked: _Asked) -> Opened | None:
        sign_in, tokens = self._sign_ins.prepare(account, asked.device, asked.identity.method)
        await self._require_second_factor(account, asked)
        event = _signed_in(account, sign_in.id, asked.identity)
        return (account, tokens, False) if await self._store.sign_in(sign_in, asked.identity, event) else None

    async def _open_by_email(self, account: Account, asked: _Asked) -> Opened | None:
        identity = asked.identity
        sign_in, tokens = self._sign_ins.prepare(account, asked.device, identity.method)
        reclaims = account.email_verify_time is None
        if not reclaims:  # what it is reclaimed from ends, and so does the second factor
            await self._require_second_factor(account, asked)
        detail = {"provider": identity.provider}
        linked = SecurityEvent(kind=Kind.IDENTITY_LINKED, account_id=account.id, sign_in_id=sign_in.id, detail=detail)
        done = await self._store.link_by_email(
            identity,
            sign_in,
            reclaimed=replace(linked, kind=Kind.ACCOUNT_RECLAIMED) if reclaims else None,
            events=[linked, _signed_in(account, sign_in.id, identity)],
        )
        return (account, tokens, False) if done else None

    async def _open_guest(self, guest_id: UUID, asked: _Asked) -> Opened | None:
        identity = asked.identity
        guest = await self._known.account(guest_id)
        account = replace(
            guest,
            email=identity.proved_email,
            email_verify_time=self._now() if identity.proved_email else None,
            is_guest=False,
        )
        sign_in, tokens = self._sign_ins.prepare(account, asked.device, identity.method)
        event = _signed_in(account, sign_in.id, identity)
        signed_up = _signed_up_guest(event, identity)
        try:
            done = await self._store.upgrade(identity, sign_in, events=[signed_up, event])
        except Failure as failure:
            # The same call, twice at once, is no other way of having become an account.
            if failure.reason is Reason.NOT_A_GUEST and await self._store.account_of(identity) is not None:
                return None
            raise
        return (account, tokens, True) if done else None

    async def _open_new(self, asked: _Asked) -> Opened | None:
        identity = asked.identity
        account = Account(
            id=uuid4(),
            # An address that nobody vouches for may be somebody else's, who is still to come.
            email=identity.proved_email,
            tenant_id=asked.tenant_id,
            role="user",
            create_time=self._now(),
            subscription=NO_SUBSCRIPTION,
            email_verify_time=self._now() if identity.proved_email else None,
        )
        sign_in, tokens = self._sign_ins.prepare(account, asked.device, identity.method)
        event = replace(_signed_in(account, sign_in.id, identity), kind=Kind.SIGNED_UP)
        return (account, tokens, True) if await self._store.create(account, identity, sign_in, event) else None

    async def _require_second_factor(self, account: Account, asked: _Asked) -> None:
        if account.id not in asked.passed:
            await self._second_factors.require(account.id, asked.code)
            asked.passed.add(account.id)


def _signed_in(account: Account, sign_in_id: UUID, identity: Identity) -> SecurityEvent:
    return SecurityEvent(
        kind=Kind.SIGNED_IN, account_id=account.id, sign_in_id=sign_in_id, detail={"method": identity.method}
    )


def _signed_up_guest(event: SecurityEvent, identity: Identity) -> SecurityEvent:
    """What else happens where `event` is a guest's."""
    return replace(event, kind=Kind.GUEST_SIGNED_UP, detail={"method": identity.method})


def _checked_name(full_name: str) -> str:
    name = full_name.strip()
    if len(name) > MAX_NAME_CHARS:
        raise invalid("full_name", f"is longer than {MAX_NAME_CHARS} characters", "TOO_LONG")
    if not name.isprintable():
        raise invalid("full_name", "holds characters that cannot be shown", "INVALID_FORMAT")
    return name
