"""Owns one-time codes: how they are made, how often one may be tried, and what is said of a wrong one.

A code is eight of the 32 characters of Crockford's alphabet: three that say which code it is, its number, and five that
nobody knows without the mail. Both are cut from an HMAC-SHA256 over the code's id, so that no code is stored, not even
its hash: a copy of the database holds ids, and the key is on disk.

A code dies with its fifth try. A try counts against the code that has its number: whoever knows that, and only the
rest is left to guess, is right by one of five tries with a probability of 5 in 2**25, 1 in 6.7 million. Somebody
without the mail has to guess all of it, 1 in 2**40 a try, and can as little use up the tries of the owner's codes. One
address, or one network of IPv6, gets five tries altogether from one code to the next, whatever it tries.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final
from uuid import UUID

from runtime.addresses import network_of
from runtime.errors import Failure, Reason, missing
from services.auth.events_domain import Kind, SecurityEvent

if TYPE_CHECKING:
    from services.auth.codes_store import CodeStore
    from services.auth.events_store import EventStore

LIFETIME: Final = timedelta(minutes=30)
MAX_TRIES: Final = 5
# Codes that an account gets for one purpose within their lifetime. All of them stay good: a stranger who asks again and
# again sends the owner codes, and takes none away.
MAX_CODES: Final = 5
CHARS: Final = 8
NUMBER_CHARS: Final = 3

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_BITS: Final = 5
# What people read in place of what is written, and what they write between it.
_AS_MEANT: Final = str.maketrans("OIL", "011", " -\t\n")
_PURPOSE: Final = b"satchel one-time codes"


class Purpose(StrEnum):
    """What a code is good for."""

    RESET = "reset"
    """Another password."""
    VERIFY = "verify"
    """That the account's address is its owner's."""
    CHANGE = "change"
    """Another address."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """A code as it is stored."""

    id: UUID
    account_id: UUID
    purpose: Purpose
    email: str
    """Where it was sent."""


class CodeBook:
    """Makes codes of ids."""

    def __init__(self, secret: bytes) -> None:
        """`secret` is the mesh's, of which the key is derived."""
        self._key = hmac.digest(secret, _PURPOSE, hashlib.sha256)

    def code(self, id: UUID, purpose: Purpose) -> str:
        """The code with this id."""
        number = int.from_bytes(
            hmac.digest(self._key, f"{purpose} {id}".encode(), hashlib.sha256)[: CHARS * _BITS // 8]
        )
        return "".join(_ALPHABET[number >> _BITS * place & 31] for place in range(CHARS))

    def is_code(self, code: Code, text: str) -> bool:
        """Whether `text`, as `parse_code` gives it, is that code; says it in the same time whichever it is."""
        return hmac.compare_digest(self.code(code.id, code.purpose), text)

    def nobody(self, email: str) -> UUID:
        """What stands for an address that no account has, where tries are counted."""
        return UUID(bytes=hmac.digest(self._key, email.encode(), hashlib.sha256)[:16])


def number_of(code: str) -> str:
    """The part that says which code it is."""
    return code[:NUMBER_CHARS]


def shown(code: str) -> str:
    """The code as people read it best."""
    return f"{code[: CHARS // 2]}-{code[CHARS // 2 :]}"


def parse_code(text: str) -> str:
    """The code that somebody typed; empty when it cannot be one. Raises Failure(FIELD_MISSING)."""
    if not text.strip():
        raise missing("code")
    meant = text[:100].upper().translate(_AS_MEANT)
    return meant if len(meant) == CHARS and set(meant) <= set(_ALPHABET) else ""


class Codes:
    """Takes codes from people."""

    def __init__(self, store: CodeStore, events: EventStore, book: CodeBook, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._events = events
        self._book = book
        self._now = now

    async def check(
        self, text: str, *, account_id: UUID | None, email: str, purposes: Sequence[Purpose], ip: str
    ) -> Code:
        """The account's live code that `text` spells; it is still to be spent.

        An account that does not exist, None, is refused after as much work and with the same words as any.

        Raises Failure: FIELD_MISSING, INVALID_CODE.
        """
        given, now = parse_code(text), self._now()
        holder = account_id or self._book.nobody(email)
        candidates = await self._store.tried(holder, purposes, number_of(given), network_of(ip), now)
        matching = [one for one in candidates if self._book.is_code(one, given)]
        if not matching:
            await self._events.fold(
                SecurityEvent(
                    kind=Kind.PROOF_REFUSED,
                    account_id=account_id,
                    detail={"proof": "code", "purpose": "+".join(purposes)},
                ),
                now,
            )
            raise Failure(Reason.INVALID_CODE)
        return matching[0]
