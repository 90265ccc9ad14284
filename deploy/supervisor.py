"""Keeps parts running: starts them tier by tier, restarts what dies, stops everything last tier first."""

import asyncio
import os
import time
from collections.abc import Callable

from deploy.parts import Child, Part, PartFailed


class Backoff:
    """How long to wait before the next restart: doubling, and forgotten once a part has stayed up."""

    def __init__(self, *, first: float = 0.2, longest: float = 10.0, healthy_after: float = 30.0) -> None:
        self._first, self._longest, self._healthy_after = first, longest, healthy_after
        self._next = first

    def after(self, uptime: float) -> float:
        """Seconds to wait after a run of `uptime` seconds."""
        if uptime >= self._healthy_after:
            self._next = self._first
        delay = self._next
        self._next = min(delay * 2, self._longest)
        return delay


class Supervisor:
    """Owns every child it started until `stop` returns."""

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        backoff: Callable[[], Backoff] = Backoff,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._backoff = backoff
        self._now = now
        self._tiers: list[list[Child]] = []
        self._watchers: list[asyncio.Task[None]] = []
        self.refusals: list[str] = []
        """What parts said that would not even begin with their settings; starting those again would not help."""

    @property
    def children(self) -> list[Child]:
        """In the order they were started."""
        return [child for tier in self._tiers for child in tier]

    async def start(self, *parts: Part, until_ready: bool = False) -> None:
        """Starts parts together, as a tier that is stopped together, before those started earlier.

        With `until_ready`, returns when all of them answer and raises PartFailed if one doesn't.
        From then on a part that dies is restarted, unless the first thing it did was to refuse its settings.
        """
        tier = [Child(part) for part in parts]
        # Before the first await: what is half started is stopped too.
        self._tiers.append(tier)
        try:
            async with asyncio.TaskGroup() as group:
                for child in tier:
                    group.create_task(self._launch(child, until_ready))
        except* PartFailed as failures:
            raise failures.exceptions[0] from None
        self._watchers += [asyncio.create_task(self._keep_running(child)) for child in tier]

    async def stop(self) -> None:
        """Stops everything, last tier first."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for tier in reversed(self._tiers):
            await asyncio.gather(*(child.stop() for child in tier))

    def kill(self) -> None:
        """Kills everything at once. A `stop` under way, or a later one, then returns soon."""
        for child in reversed(self.children):
            child.kill()

    async def _launch(self, child: Child, until_ready: bool) -> None:
        await child.start()
        if until_ready:
            await child.until_ready()

    async def _keep_running(self, child: Child) -> None:
        backoff, first = self._backoff(), True
        while True:
            started = self._now()
            code = await child.wait()
            if first and code == os.EX_CONFIG:
                self.refusals.append(f"{child.part.name}: {' '.join(child.last_lines(1))}")
                return
            first, report = False, child.obituary(code)
            uptime = self._now() - started
            while report:
                delay = backoff.after(uptime)
                headline, *last_lines = report.splitlines()
                self._say("\n".join([f"{headline}; restarting in {delay:g} s", *last_lines]))
                await asyncio.sleep(delay)
                report, uptime = await self._revive(child), 0.0
            self._say(f"{child.part.name} is running again (pid {child.pid})")

    async def _revive(self, child: Child) -> str:
        """Starts it again; what went wrong, or nothing."""
        try:
            await child.start()
        except (OSError, PartFailed) as failure:
            return f"{child.part.name} could not be started: {failure}"
        return ""
