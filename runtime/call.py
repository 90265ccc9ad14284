"""Owns what is known of the call being served: who calls, by which rpc, under which request id."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from runtime.contract import Policy

Role = Literal["user", "admin", "service"]


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who calls, as the verified token says."""

    user_id: UUID
    sign_in_id: UUID
    tenant_id: int
    role: Role
    tier: str
    issuer: str = ""
    """Who issued the token, where that was not us: the account may be one that we have never heard of."""
    guest: bool = False
    """Whether it is an account without any way in but its sign-ins; when the token was made, it was."""
    actor: str = ""
    """The service that calls, service:<name>: as itself, or with `role` user in the user's name."""
    scopes: frozenset[str] | None = None
    """What an application's token is good for; None: all that the user may."""

    @property
    def delegated(self) -> bool:
        """Whether somebody else calls in the user's name."""
        return self.role != "service" and (bool(self.actor) or self.scopes is not None)


@dataclass(frozen=True, kw_only=True)
class IdempotencyKey:
    """The caller's name for the call, and what the call held."""

    key: str
    digest: bytes
    """sha256 of the request, independent of the order of its map entries."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What the contract goes on doing for a stream after it was let in."""

    recheck: Callable[[], Awaitable[None]]
    """Raises Failure when the token has expired or its sign-in was ended since."""
    count: Callable[[str], Awaitable[None]]
    """Counts a message as a call of the rpc that is named as on the wire. Raises Failure(RATE_LIMITED)."""
    cut: Callable[[], None]
    """Ends the stream though its caller does not take what was written; what was not taken is lost.

    Only of streams on both sides: elsewhere the edge does, when the stream's time is over.
    """
    draining: asyncio.Event
    """Set when this process is about to stop."""


@dataclass(kw_only=True, slots=True)
class Call:
    """One call while it is served; the interceptor fills it in as it learns more."""

    policy: Policy
    request_id: str
    client_ip: str
    user_agent: str
    rest: bool
    """Whether the caller speaks JSON through the edge."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The headers that came with it, in lower case; no binary ones."""
    principal: Principal | None = None
    idempotency: IdempotencyKey | None = None
    status: int = 200
    """The HTTP status of a successful answer to a REST caller."""
    headers: tuple[tuple[str, str], ...] = ()
    """What the answer's headers carry beside the answer, such as the rate limit."""
    watch: Watch | None = None
    """For rpcs whose answer is a stream."""


current: ContextVar[Call] = ContextVar("call")


def principal() -> Principal:
    """Who calls the rpc that is being served; only for rpcs whose access is not PUBLIC or OPTIONAL."""
    caller = principal_if_any()
    if caller is None:
        raise LookupError("this rpc is open to callers without a token")
    return caller


def principal_if_any() -> Principal | None:
    """Who calls the rpc that is being served; None for a caller without a token."""
    return current.get().principal


def idempotency_key() -> IdempotencyKey | None:
    """The call's idempotency key, if the rpc takes one and the caller sent one."""
    return current.get().idempotency


def header(name: str) -> str:
    """One of the headers that came with the call; empty when it did not."""
    return current.get().metadata.get(name, "")


def watch() -> Watch:
    """What goes on around the stream that is being served; only for rpcs whose answer is a stream."""
    watched = current.get().watch
    if watched is None:
        raise LookupError("the answer of this rpc is no stream")
    return watched


def answer_status(status: int) -> None:
    """Gives the call's successful answer another HTTP status than its contract says, for REST callers."""
    current.get().status = status


def answer_headers(*headers: tuple[str, str]) -> None:
    """Adds headers to the call's answer, names in lower case."""
    current.get().headers += headers
