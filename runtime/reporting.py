"""Owns how what this process has noted reaches the health service: in batches, each counted once, in nobody's way."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Final
from uuid import uuid4

import grpc

from runtime.config import Config
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from runtime.mesh import HealthClient, channel
from runtime.outcomes import Batch, Outcomes, Unnoted
from runtime.telemetry import OUTCOME_ERRORS, OUTCOMES_REPORTED, logger

INTERVAL: Final = 2.0
# A report that took long is followed by a longer pause, in which the rows of a busy phone become one: so that what is
# spent on reporting stays below a hundredth of the time.
REST: Final = 150  # times what the report took
LONGEST_REST: Final = 3  # intervals
# The longest pause between two attempts while the health service is away.
LONGEST_PAUSE: Final = 10.0
BATCH: Final = 5000
# Seconds for what is left when the process stops.
LAST_WORD: Final = 1.0

_chance: Final = random.Random()  # noqa: S311  # spreads load, guards nothing


def rest(took: float) -> float:
    """How long to wait after a report that `took` so long; seconds."""
    return max(INTERVAL, min(REST * took, LONGEST_REST * INTERVAL))


class Reporter:
    """Brings outcomes to the health service, one batch after the other."""

    def __init__(self, outcomes: Outcomes, report: Callable[[Batch], Awaitable[None]]) -> None:
        """`report`: HealthClient.report of this process."""
        self._outcomes = outcomes
        self._report = report
        self._batch: Batch | None = None
        self._number = 0
        self._failing = False

    async def run(self) -> None:
        """Reports what is noted, every two to six seconds, until it is cancelled; less often while nobody listens."""
        pause = INTERVAL
        while True:
            # Processes that start together must not report together for ever.
            await asyncio.sleep(pause * _chance.uniform(0.8, 1.2))
            begun = time.monotonic()
            told = await self.flush()
            pause = rest(time.monotonic() - begun) if told else min(2 * pause, LONGEST_PAUSE)

    async def flush(self, *, last: bool = False) -> bool:
        """Reports all that is noted. False: not all of it could be, and is kept.

        `last`: nobody has to hear that it could not, for there will be no other time.
        """
        self._failing = self._failing or last
        while self._batch is not None or self._outcomes.waiting:
            if self._batch is None:
                self._number += 1
                self._batch = self._outcomes.take(self._number, BATCH)
            try:
                await self._report(self._batch)
            except Exception as error:  # whatever it was: who stops reporting is never heard again
                self._failed(self._batch, error)
                return False
            OUTCOMES_REPORTED.inc(len(self._batch.rows))
            self._outcomes.settle()
            self._batch, self._failing = None, False
        return True

    def _failed(self, batch: Batch, error: Exception) -> None:
        OUTCOME_ERRORS.inc()
        if not isinstance(error, grpc.aio.AioRpcError) or error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            logger().error("outcomes can never be reported and are dropped", count=len(batch.rows), error=repr(error))
            self._outcomes.drop(batch)
            self._batch = None
        elif not self._failing:
            logger().warning("outcomes cannot be reported yet", error=repr(error))
            self._failing = True


@asynccontextmanager
async def reporting(config: Config, name: str) -> AsyncIterator[Outcomes]:
    """Outcomes that are reported in the name of a service for as long as the block runs, and what is left at its end.

    With SATCHEL_REPORT_OUTCOMES=off nothing is ever noted.
    """
    if not config.reports_outcomes:
        yield Unnoted()
        return
    outcomes = Outcomes()
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(channel(config.health_address))
        client = HealthClient(opened, ServiceTokens(mesh_secret(config.keys), name))
        reporter = Reporter(outcomes, partial(client.report, uuid4()))
        task = asyncio.create_task(reporter.run(), name="report outcomes")
        try:
            yield outcomes
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD):
                    await reporter.flush(last=True)
