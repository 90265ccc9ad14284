"""How figures are compared: each right beside its floor, round after round, in alternating order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

Measure = Callable[[float], Awaitable[float]]
"""Works for about so many seconds and returns what it did per second."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A figure and the floor it is judged by."""

    name: str
    floor_name: str
    unit: str
    figure: Measure
    floor: Measure
    target: float | None = None
    """The least ratio of the two that is wanted."""
    figures: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    """One of each per round."""

    @property
    def ratios(self) -> list[float]:
        return [figure / floor for figure, floor in zip(self.figures, self.floors, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: what slows a whole round down slows both sides of it."""
        return median(self.ratios)


async def compare(pairs: Sequence[Pair], *, rounds: int, seconds: float) -> None:
    """Fills the pairs. Rounds go through all of them, so that drift of the machine meets all of them."""
    for measure in {id(one): one for pair in pairs for one in (pair.floor, pair.figure)}.values():
        await measure(min(seconds, 0.5))  # connections, prepared statements and caches: not counted
    for number in range(rounds):
        for pair in pairs:
            sides = [(pair.floor, pair.floors), (pair.figure, pair.figures)]
            for measure, results in sides if number % 2 == 0 else reversed(sides):
                results.append(await measure(seconds))


async def rate(callers: Iterable[Callable[[], Awaitable[bool]]], seconds: float) -> float:
    """Calls per second: each caller calls again as soon as it is answered, until time is up or it returns False."""
    done = 0
    started = time.perf_counter()

    async def repeat(call: Callable[[], Awaitable[bool]]) -> None:
        nonlocal done
        while time.perf_counter() - started < seconds and await call():
            done += 1

    await asyncio.gather(*(repeat(call) for call in callers))
    return done / (time.perf_counter() - started)
