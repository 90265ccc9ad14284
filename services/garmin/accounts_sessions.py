"""Owns sessions at Garmin for users who linked an account: tokens come from the vault, and refreshed ones go back."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol
from uuid import UUID

from services.garmin.connect import GarminSession


class LinkedAccounts(Protocol):
    """What jobs ask of the accounts."""

    def session(self, user_id: UUID) -> AbstractAsyncContextManager[GarminSession]:
        """A session of the user's linked account. Refreshed tokens are stored after the very call that refreshed them.

        Entering raises Failure(NOT_FOUND) when nothing is linked (or the user is gone), SignInEnded when the user has
        to link the account again, GarminAway when the auth service is away. A SignInEnded inside marks the link.
        """
