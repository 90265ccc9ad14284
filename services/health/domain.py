"""Owns what the state of the mesh is: every part asked at once, and what their answers come to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from runtime.patience import within

# A part that takes longer is as good as gone for a phone, and a probe must answer before its own deadline.
PROBE_TIMEOUT: Final = 1.5

State = Literal["up", "down", "off"]
Status = Literal["ok", "degraded", "down"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the mesh and how to ask it."""

    name: str
    needed: bool
    probe: Callable[[], Awaitable[None]] | None
    """Raises when the part is down; None: the part is not configured."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a part answered."""

    name: str
    state: State
    latency_ms: float
    """0 when it did not answer."""
    needed: bool


class Mesh:
    """The parts that the product stands on."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._asking: asyncio.Task[list[Finding]] | None = None

    async def check(self) -> list[Finding]:
        """Every part's state, asked all at once.

        Who comes while they are being asked shares the answers: anybody may come, and however many do, a part is asked
        no more often than it answers.
        """
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all(), name="check the mesh")
        return await asyncio.shield(self._asking)

    async def _ask_all(self) -> list[Finding]:
        try:
            return list(await asyncio.gather(*(_ask(part) for part in self._parts)))
        finally:
            self._asking = None


def status_of(findings: Sequence[Finding]) -> Status:
    """Whether the mesh is down (a needed part is), degraded (another one is) or ok."""
    missing = [finding for finding in findings if finding.state == "down"]
    if any(finding.needed for finding in missing):
        return "down"
    return "degraded" if missing else "ok"


async def _ask(part: Part) -> Finding:
    if part.probe is None:
        return Finding(name=part.name, state="off", latency_ms=0, needed=part.needed)
    started = time.perf_counter()
    try:
        await within(PROBE_TIMEOUT, part.probe)
    except Exception:  # whatever a part raises, the answer is the same: it is down
        return Finding(name=part.name, state="down", latency_ms=0, needed=part.needed)
    latency = round((time.perf_counter() - started) * 1000, 2)
    return Finding(name=part.name, state="up", latency_ms=latency, needed=part.needed)
