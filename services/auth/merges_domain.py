"""Owns merges: that all a guest has becomes an account's, whatever dies meanwhile, and then the guest ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from runtime.call import Principal
from runtime.errors import Failure, Reason, Violation, invalid, missing
from runtime.rounds import Rounds, pause_after
from runtime.telemetry import MERGE_ERRORS, logger
from services.auth.accounts_domain import KnownAccounts
from services.auth.deletions_domain import Receipts
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.tokens import AccessTokens, parse_refresh_token, refresh_token

if TYPE_CHECKING:
    from services.auth.merges_store import MergeStore

# After so long a replica that has taken a merge up is believed to be gone; longer than its calls may take together.
CLAIM: Final = timedelta(seconds=120)

Adopt = Callable[[UUID, UUID, int], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A sign-in as it stands, to judge a token by."""

    account_id: UUID
    token_key: bytes = field(repr=False)
    current_digest: bytes = field(repr=False)
    previous_digest: bytes | None = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A merge that was asked for."""

    guest_id: UUID
    done: bool
    receipt_id: str
    """Of the guest's deletion, which is done after the merge."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A merge that is to be carried out."""

    guest_id: UUID
    account_id: UUID
    tenant_id: int
    attempts: int
    """That have failed."""
    account_ended: bool
    """Whether the account was deleted since."""


class Merges:
    """Takes merges on, and carries out what is due; any number of replicas may do it at once."""

    def __init__(
        self,
        store: MergeStore,
        known: KnownAccounts,
        access_tokens: AccessTokens,
        receipts: Receipts,
        steps: Sequence[Adopt],
        *,
        deleted: Callable[[], None],
        now: Callable[[], datetime],
    ) -> None:
        """Each of `steps` moves what a guest has in one other service, in their order; all may be repeated.

        `deleted` is told that there is something to erase elsewhere.
        """
        self._store = store
        self._known = known
        self._access_tokens = access_tokens
        self._receipts = receipts
        self._steps = steps
        self._deleted = deleted
        self._now = now
        self._rounds = Rounds(self.carry_out, name="carry out merges")

    async def begin(self, caller: Principal, guest_refresh_token: str, guest_access_token: str) -> Begun:
        """Ends a guest's sign-ins, and has all it has moved to the caller; the same again tells how far that is.

        Raises Failure: INVALID_TOKEN when the caller is gone; FIELD_MISSING, FIELD_INVALID for a token that is not good
        or the caller's own; NOT_A_GUEST for an account's, or for a guest who went to another account; FORBIDDEN to a
        guest and for another tenant's.
        """
        field = "guest_refresh_token" if guest_refresh_token else "guest_access_token"
        await self._known.of(caller)
        try:
            guest_id, sign_in_id = await self._guest(guest_refresh_token, guest_access_token)
            if guest_id == caller.user_id:
                raise invalid(field, "is of the account itself", "CONFLICT")
            done = await self._store.begin(
                guest_id,
                caller.user_id,
                sign_in_id,
                now=self._now(),
                receipt_digest=self._receipts.digest_of(guest_id),
                events=(
                    SecurityEvent(
                        kind=Kind.ACCOUNT_DELETED, account_id=guest_id, detail={"merged_into": str(caller.user_id)}
                    ),
                    SecurityEvent(
                        kind=Kind.GUEST_MERGED,
                        account_id=caller.user_id,
                        sign_in_id=caller.sign_in_id,
                        detail={"guest": str(guest_id)},
                    ),
                ),
            )
        except Failure as failure:
            if failure.reason in (Reason.INVALID_TOKEN, Reason.TOKEN_EXPIRED, Reason.TOKEN_REVOKED):
                # Not the token that the call itself came with: nobody has to sign in anew.
                violations = [Violation(field, failure.reason.name)]
                raise Failure(Reason.FIELD_INVALID, f"{field}: {failure.message}", violations=violations) from None
            raise
        self._rounds.look()
        return Begun(guest_id=guest_id, done=done, receipt_id=self._receipts.id_of(guest_id))

    async def carry_out(self) -> None:
        """Takes up all that is due; what fails is put off, longer each time. Raises when the database is away."""
        while merge := await self._store.take(self._now(), CLAIM):
            try:
                # What was to be the account's goes with the account.
                for step in () if merge.account_ended else self._steps:
                    await step(merge.guest_id, merge.account_id, merge.tenant_id)
            except Exception as error:  # whatever it was, it is tried again until it is done
                MERGE_ERRORS.inc()
                logger().warning("cannot merge yet", guest=merge.guest_id, user=merge.account_id, error=repr(error))
                until = self._now() + pause_after(merge.attempts)
                await self._store.put_off(merge.guest_id, until, attempts=merge.attempts + 1)
                continue
            await self._store.finish(merge.guest_id, self._now())
            logger().info("merged a guest", guest=merge.guest_id, user=merge.account_id)
            self._deleted()

    def running(self) -> AbstractAsyncContextManager[None]:
        """Carries out what falls due for as long as the block runs."""
        return self._rounds.running()

    async def _guest(self, refresh: str, access: str) -> tuple[UUID, UUID]:
        """Whose tokens these are, and of which sign-in, whether or not that has ended."""
        if refresh:
            presented = parse_refresh_token(refresh)
            standing = await self._store.sign_in(presented.sign_in_id)
            if (
                standing is None
                or presented.digest not in (standing.current_digest, standing.previous_digest)
                or refresh_token(presented.sign_in_id, presented.secret, standing.token_key).tag != presented.tag
            ):
                raise Failure(Reason.INVALID_TOKEN)
            return standing.account_id, presented.sign_in_id
        if not access:
            raise missing("guest_refresh_token")
        return self._access_tokens.read(access)
