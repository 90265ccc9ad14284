"""Owns what is too old to keep, and that it goes: rows of the service's own, and guests who are not coming back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from runtime.telemetry import SWEEP_ERRORS, SWEPT, logger
from services.auth.attempts_domain import FORGET_AFTER
from services.auth.sign_ins_domain import MEMORY

if TYPE_CHECKING:
    from services.auth.sweeps_store import SweepStore

# Rows of one statement.
BATCH: Final = 500


class Sweeps:
    """Sweeps batch by batch; any number of replicas may do it at once."""

    def __init__(
        self,
        store: SweepStore,
        *,
        events_lifetime: timedelta,
        idle_guests: Callable[[datetime, int], Awaitable[int]],
        guest_lifetime: timedelta,
        now: Callable[[], datetime],
        batch: int = BATCH,
    ) -> None:
        """`idle_guests` deletes up to so many guests who have not been back since a moment; returns how many."""
        self._kinds = (
            ("guests", idle_guests, guest_lifetime),
            ("sign_ins", store.sign_ins, MEMORY),
            ("security_events", store.security_events, events_lifetime),
            ("attempts", store.attempts, FORGET_AFTER),
            # Their time is over when they expire.
            ("codes", store.codes, timedelta(0)),
            ("code_tries", store.code_tries, timedelta(0)),
            ("mails", store.mails, timedelta(0)),
        )
        self._now = now
        self._batch = batch
        self._failing: set[str] = set()

    async def round(self) -> Counter[str]:
        """Sweeps all that is too old; returns how many rows of each kind went.

        What fails is logged and left to the next round; the other kinds are swept all the same.
        """
        swept: Counter[str] = Counter()
        for kind, sweep, lifetime in self._kinds:
            try:
                before = self._now() - lifetime
                while True:
                    rows = await sweep(before, self._batch)
                    swept[kind] += rows
                    SWEPT.labels(kind).inc(rows)
                    if rows < self._batch:
                        break
                self._failing.discard(kind)
            except Exception as error:  # whatever it was, the next round tries again
                SWEEP_ERRORS.labels(kind).inc()
                if kind not in self._failing:
                    logger().warning("cannot sweep", kind=kind, error=repr(error))
                self._failing.add(kind)
        return swept
