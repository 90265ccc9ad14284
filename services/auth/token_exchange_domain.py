"""Owns how a service comes to act for a user: a token of five minutes that names both (RFC 8693)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from runtime.call import Principal
from runtime.errors import Failure, Reason, invalid, missing
from runtime.identity import Verifier
from runtime.ids import parse_uuid
from runtime.mesh import TOKEN_EXCHANGE, USER_ID_TYPE
from services.auth.accounts import Account
from services.auth.application_tokens_domain import parse_scopes
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.tokens import ACTING_TOKEN_SECONDS, AccessTokens

if TYPE_CHECKING:
    from services.auth.accounts_store import AccountStore
    from services.auth.events_store import EventStore
    from services.auth.sign_ins_store import SignInStore

ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  # the name of a type
JWT_TYPE: Final = "urn:ietf:params:oauth:token-type:jwt"
_OUR_TOKENS: Final = (ACCESS_TOKEN_TYPE, JWT_TYPE)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What a service asks for; the names are those of the RFC."""

    grant_type: str
    subject_token: str
    subject_token_type: str
    requested_token_type: str
    scope: str

    def __repr__(self) -> str:
        return f"Exchange(subject_token_type={self.subject_token_type!r})"


@dataclass(frozen=True, kw_only=True)
class ActingToken:
    """What it gets."""

    access_token: str
    issued_token_type: str
    expires_in: int
    """Seconds."""
    scopes: frozenset[str] | None

    def __repr__(self) -> str:
        return f"ActingToken(scopes={self.scopes})"


class TokenExchange:
    """Gives services tokens to act for users."""

    def __init__(
        self,
        accounts: AccountStore,
        sign_ins: SignInStore,
        events: EventStore,
        access_tokens: AccessTokens,
        verifier: Verifier,
        *,
        now: Callable[[], datetime],
    ) -> None:
        """`verifier` tells whom a subject's token speaks for, but not whether that was ended."""
        self._accounts = accounts
        self._sign_ins = sign_ins
        self._events = events
        self._access_tokens = access_tokens
        self._verifier = verifier
        self._now = now

    async def exchange(self, caller: Principal, asked: Exchange) -> ActingToken:
        """A token for `caller`, a service, to act for the subject.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, NOT_FOUND, INVALID_TOKEN, TOKEN_EXPIRED, TOKEN_REVOKED, FORBIDDEN.
        """
        _check(asked)
        subject_id, sign_in_id, scopes = await self._subject(asked)
        if asked.scope:
            wanted = parse_scopes("scope", asked.scope.split())
            if scopes is not None and not wanted <= scopes:
                raise Failure(Reason.FORBIDDEN, "The subject's token has a narrower scope.")
            scopes = wanted
        account = (await self._accounts.accounts([subject_id])).get(subject_id)
        if account is None:
            raise Failure(Reason.NOT_FOUND, "There is no such user.")
        await self._events.record(
            SecurityEvent(
                kind=Kind.TOKEN_EXCHANGED,
                account_id=subject_id,
                sign_in_id=sign_in_id if sign_in_id != subject_id else None,
                actor=caller.actor,
                detail={"subject": "user" if asked.subject_token_type == USER_ID_TYPE else "token"},
            ),
            self._now(),
        )
        return ActingToken(
            access_token=self._access_tokens.mint_acting(
                _principal(caller, account.at(self._now()), sign_in_id, scopes)
            ),
            issued_token_type=asked.requested_token_type or ACCESS_TOKEN_TYPE,
            expires_in=ACTING_TOKEN_SECONDS,
            scopes=scopes,
        )

    async def _subject(self, asked: Exchange) -> tuple[UUID, UUID, frozenset[str] | None]:
        """Whose token it is, what it ends with, and its scopes."""
        if asked.subject_token_type == USER_ID_TYPE:
            user_id = UUID(parse_uuid("subject_token", asked.subject_token))
            return user_id, user_id, None  # it ends with the account
        subject = await self._verifier.principal(f"Bearer {asked.subject_token}")
        if subject.role == "service" or subject.actor:
            raise Failure(Reason.FORBIDDEN, "The subject's token is not a user's own.")
        if not await self._sign_ins.lives(subject.sign_in_id):
            raise Failure(Reason.TOKEN_REVOKED)
        return subject.user_id, subject.sign_in_id, subject.scopes


def _check(asked: Exchange) -> None:
    for name in ("grant_type", "subject_token", "subject_token_type"):
        if not getattr(asked, name):
            raise missing(name)
    if asked.grant_type != TOKEN_EXCHANGE:
        raise invalid("grant_type", f"must be {TOKEN_EXCHANGE}", "UNKNOWN_VALUE")
    if asked.subject_token_type not in (*_OUR_TOKENS, USER_ID_TYPE):
        raise invalid("subject_token_type", "must be an access token, a jwt or a user id", "UNKNOWN_VALUE")
    if asked.requested_token_type not in ("", *_OUR_TOKENS):
        raise invalid("requested_token_type", "must be an access token or a jwt", "UNKNOWN_VALUE")


def _principal(caller: Principal, account: Account, sign_in_id: UUID, scopes: frozenset[str] | None) -> Principal:
    # What the user may do as administrator is not lent to services.
    return Principal(
        user_id=account.id,
        sign_in_id=sign_in_id,
        tenant_id=account.tenant_id,
        role="user",
        tier=account.subscription.tier,
        actor=caller.actor,
        scopes=scopes,
    )
