"""Owns passwords: which ones are taken, and argon2id off the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

from runtime.errors import invalid, missing
from runtime.threads import step_back

MIN_CHARS: Final = 8
MAX_CHARS: Final = 128
# RFC 9106's second recommended option.
COST: Final = RFC_9106_LOW_MEMORY
# Hashing takes a good part of a second of a core, and calls that need none go first.
NICE: Final = 10

T = TypeVar("T")


def check_password(password: str, *, email: str = "", field: str = "password") -> None:
    """Raises Failure(FIELD_INVALID) for a password that is too short, too long, or among the first to be guessed.

    Among those is the account's own `email`, whole or up to its @. `field` is what the refusal names.
    """
    if not password:
        raise missing(field)
    if len(password) < MIN_CHARS:
        raise invalid(field, f"must have at least {MIN_CHARS} characters", "TOO_SHORT")
    if len(password) > MAX_CHARS:
        raise invalid(field, f"must have at most {MAX_CHARS} characters", "TOO_LONG")
    folded = password.strip().lower()
    if len(set(password)) == 1 or password.lower() in commonest() or folded in (email, email.partition("@")[0]):
        raise invalid(field, "is among the passwords that are guessed first; choose another", "TOO_COMMON")


class Passwords:
    """Hashes and verifies with argon2id, as many at once as there are cores."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher.from_parameters(COST)
        self._threads = ThreadPoolExecutor(
            os.cpu_count() or 1, thread_name_prefix="argon2", initializer=step_back, initargs=(NICE,)
        )
        self._nobody = ""

    async def hash(self, password: str) -> str:
        """The encoded hash of `password`."""
        return await self._run(self._hasher.hash, _bytes(password))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether `password` is the one that was hashed; takes as long when there is no hash, and is then False.

        An account without a password has an empty hash.
        """
        if not self._nobody:
            self._nobody = await self.hash("nobody's password")
        matches = await self._run(self._matches, password_hash or self._nobody, _bytes(password))
        return matches and bool(password_hash)

    def close(self) -> None:
        """Waits for the hashes in progress."""
        self._threads.shutdown()

    def _matches(self, password_hash: str, password: bytes) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")


@cache
def commonest() -> frozenset[str]:
    """Some 30,000 passwords known from breaches: the list that zxcvbn ships. The first call takes a moment."""
    from zxcvbn.frequency_lists import FREQUENCY_LISTS

    return frozenset(FREQUENCY_LISTS["passwords"])
