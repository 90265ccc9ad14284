"""Owns the user of an installation that has one: whom calls without a token act as, unless others may have made them.

Only where the published API shows calls without one: the rpcs of its dialect that take a signed-in user.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from uuid import UUID

from satchel.options.v1 import options_pb2 as options

from runtime.call import Call, Principal
from runtime.config import Config
from runtime.contract import Policy
from runtime.errors import Failure, Reason

if TYPE_CHECKING:
    from runtime.identity import Verifier
    from runtime.mesh import Acting

# Written by the edge on every request, over whatever its caller has put there: the host that the caller asked for.
HOST_HEADER: Final = "x-edge-host"
# How long an answer of the auth service is believed: whose account it is, and that there is none.
KNOWN_SECONDS: Final = 60.0
UNKNOWN_SECONDS: Final = 1.0
# What a browser says of requests that a page of the same site, or nobody's page, has made.
_OWN_SITES: Final = ("", "same-origin", "none")


class SingleUser:
    """Says as whom a call without a token acts."""

    def __init__(
        self,
        email: str,
        *,
        find: Callable[[str], Awaitable[UUID | None]],
        acting: Acting,
        verifier: Verifier,
        public_host: str,
        any_address: bool,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`find` gives the id of the account with an address; `public_host` is that of the public URL.

        `any_address`: the edge may be asked for by any IP address, and not only on this machine.
        """
        self._email = email
        self._find = find
        self._acting = acting
        self._verifier = verifier
        self._public_host = public_host
        self._any_address = any_address
        self._monotonic = monotonic
        self._user_id: UUID | None = None
        self._ask_at = -math.inf

    def answers_for(self, call: Call) -> bool:
        """Whether it is for the single user to make this call; not with any token, be it good or bad."""
        return "authorization" not in call.metadata and open_to(call.policy)

    async def principal(self, metadata: Mapping[str, str]) -> Principal:
        """The single user, by the hand of the service that is called: without an administrator's rights.

        Raises Failure: MISSING_BEARER_TOKEN for a call that a page of another site may have made, and while there is no
        such account; UNAVAILABLE. Raises grpc.aio.AioRpcError when auth is away.
        """
        self._check_caller(metadata)
        for first_try in (True, False):
            user_id = await self._account()
            try:
                ((_, authorization),) = await self._acting.acting_for(user_id)
                return await self._verifier.principal(authorization)
            except Failure as failure:
                if failure.reason not in (Reason.NOT_FOUND, Reason.TOKEN_REVOKED):
                    raise
            # The account has ended since; there may be another one with this address.
            self._acting.forget(user_id)
            self._ask_at = -math.inf if first_try else self._monotonic() + UNKNOWN_SECONDS
        raise _no_account()

    async def _account(self) -> UUID:
        if self._monotonic() >= self._ask_at:
            self._user_id = await self._find(self._email)
            self._ask_at = self._monotonic() + (UNKNOWN_SECONDS if self._user_id is None else KNOWN_SECONDS)
        if self._user_id is None:
            raise _no_account()
        return self._user_id

    def _check_caller(self, metadata: Mapping[str, str]) -> None:
        """Raises Failure(MISSING_BEARER_TOKEN) unless it came by a name of ours, and from no other site's page."""
        place = metadata.get(HOST_HEADER, "")
        # A page that has its own name point here would come by that name.
        if not self._is_ours(place):
            raise _refused("Without a token this server answers to its own names only; the call needs an access token.")
        origin = metadata.get("origin", "")
        own_page = not origin or origin.partition("://")[2].lower() == place.lower()
        if not own_page or metadata.get("sec-fetch-site", "") not in _OWN_SITES:
            raise _refused("Pages of other sites need an access token here.")

    def _is_ours(self, place: str) -> bool:
        try:
            host = urlsplit(f"//{place}").hostname or ""
        except ValueError:
            return False
        if host == "localhost" or (host and host == self._public_host):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return self._any_address or address.is_loopback


def open_to(policy: Policy) -> bool:
    """Whether an rpc is open to the single user: one that opens, changes or closes ways into an account never is."""
    return policy.access == options.ACCESS_USER and policy.dialect == options.DIALECT_DETAIL and policy.delegable


def single_user(
    config: Config, find: Callable[[str], Awaitable[UUID | None]], acting: Acting, verifier: Verifier
) -> SingleUser | None:
    """The single user of this installation; None: each call needs a token."""
    if not config.single_user:
        return None
    return SingleUser(
        config.single_user,
        find=find,
        acting=acting,
        verifier=verifier,
        public_host=urlsplit(config.links).hostname or "",
        any_address=config.single_user_anywhere == "on",
    )


def _refused(why: str) -> Failure:
    return Failure(Reason.MISSING_BEARER_TOKEN, why)


def _no_account() -> Failure:
    return _refused("SATCHEL_SINGLE_USER names an account that does not exist: sign up with that address first.")
