"""Owns a run: the phones of a schedule against a world that fails, and what must hold when it is quiet again."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from tests.convergence.device import CallingDevice, Clock
from tests.convergence.doors import grpc_door, rest_door
from tests.convergence.ledger import Ledger, verify
from tests.convergence.line import Line
from tests.convergence.schedule import DEVICES, POLICIES, USERS, Fault, Step, rounds
from tests.convergence.stream import StreamDevice, streaming
from tests.convergence.world import World
from tests.factories import Phone

PATIENCE = 60.0  # seconds
MINUTE = 60_000_000  # microseconds

# How a phone talks: so that every kind meets every other in one user's hands.
KINDS = ("REST by the edge", "stream", "gRPC", "stream by the edge", "gRPC by the edge")

# Late, right, ahead; in whole seconds or finer. Two that count alike may well name the same moment.
CLOCKS = (
    Clock(skew=-61 * MINUTE, grain=1_000_000, is_told=False),
    Clock(skew=0, grain=1, is_told=False),
    Clock(skew=-61 * MINUTE, grain=1_000_000, is_told=False),
    Clock(skew=7 * MINUTE, grain=1000, is_told=False),
    Clock(skew=-1_500_000, grain=1, is_told=False),
    Clock(skew=43 * MINUTE, grain=1, is_told=True),
    Clock(skew=-17 * MINUTE, grain=1000, is_told=True),
)


class Run:
    """One run of one seed."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._seed = seed
        self._devices: dict[tuple[int, int], CallingDevice | StreamDevice] = {}
        self._ledgers: list[tuple[Phone, Ledger]] = []
        self._calls = 0
        self._called = asyncio.Event()

    async def __call__(self, steps: int) -> Counter[str]:
        """Goes through the schedule and checks every claim; what happened, counted."""
        counts: Counter[str] = Counter()
        async with AsyncExitStack() as stack:
            await self._equip(stack)
            for number, one in enumerate(rounds(self._seed, steps)):
                self._calls = 0
                phones = asyncio.gather(
                    *(self._take(self._devices[place], taken) for place, taken in one.steps.items())
                )
                if one.fault:
                    counts[one.fault.kind] += 1
                    await asyncio.gather(phones, self._break(one.fault, phones))
                await phones
                counts["steps"] += sum(len(taken) for taken in one.steps.values())
                counts["rounds"] = number + 1
            await self._quieten()
            for device in self._devices.values():
                counts.update({f"cuts in the {where}": times for where, times in device.line.cuts.items()})
            await self._judge(counts)
        return counts

    async def _equip(self, stack: AsyncExitStack) -> None:
        luck = random.Random(self._seed)
        world = self._world
        for user in range(USERS):
            phone = await world.user()
            ledger = Ledger(user=f"user {user}", policies=POLICIES)
            self._ledgers.append((phone, ledger))
            for number in range(DEVICES):
                kind = KINDS[(user * DEVICES + number) % len(KINDS)]
                through_edge = kind.endswith("edge")
                line = await stack.enter_async_context(
                    Line("127.0.0.1", world.edge.port if through_edge else world.sessions_port)
                )
                rest: dict[str, Any] = {
                    "line": line,
                    "clock": luck.choice(CLOCKS),
                    "ledger": ledger,
                    "on_call": self._count_call,
                }
                name, place = f"{user}-{number}", {"port": line.port, "token": phone.access_token}
                if kind.startswith("stream"):
                    device: CallingDevice | StreamDevice
                    device = await stack.enter_async_context(streaming(name, **place, **rest))
                else:
                    door = (rest_door if kind.startswith("REST") else grpc_door)(**place)
                    device = CallingDevice(name, door=await stack.enter_async_context(door), **rest)
                self._devices[user, number] = device

    def _count_call(self) -> None:
        self._calls += 1
        self._called.set()

    async def _break(self, fault: Fault, phones: asyncio.Future[list[None]]) -> None:
        """Breaks something as soon as so many calls are on their way."""
        while self._calls < fault.after_calls and not phones.done():
            self._called.clear()
            waiting = asyncio.ensure_future(self._called.wait())
            await asyncio.wait({waiting, phones}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        if fault.kind == "every connection breaks":
            for device in self._devices.values():
                device.line.hang_up()
            return
        await self._world.fail(fault.kind)

    async def _take(self, device: CallingDevice | StreamDevice, steps: list[Step]) -> None:
        for step in steps:
            await _do(device, step)

    async def _quieten(self) -> None:
        """Everything works and everybody is online: what waits is handed over, and everybody pulls to the end."""
        devices = list(self._devices.values())
        deadline = time.monotonic() + PATIENCE
        for device in devices:
            device.is_offline = False
            device.line.mend()

        async def hand_over(device: CallingDevice | StreamDevice) -> None:
            while device.drafts or device.outbox:
                assert time.monotonic() < deadline, f"{device.name} cannot hand over {device.outbox}"
                await device.push()
                await asyncio.sleep(0.02)

        await asyncio.gather(*(hand_over(device) for device in devices))
        for number, (_, ledger) in enumerate(self._ledgers):
            for case in ledger.cases.values():
                while case.lost and not case.is_decided:
                    assert time.monotonic() < deadline, f"{case} cannot be decided"
                    await self._devices[number, 0].attempt(case)
                    await asyncio.sleep(0.02)
        await asyncio.gather(*(device.catch_up(PATIENCE) for device in devices))

    async def _judge(self, counts: Counter[str]) -> None:
        for number, (phone, ledger) in enumerate(self._ledgers):
            async with rest_door(self._world.edge.port, phone.access_token) as door:
                page = await door.pull("", 1000)
                assert not page.more, "the run is so long that one page does not hold a user's records"
                log = await door.log()
            async with grpc_door(self._world.sessions_port, phone.access_token) as other:
                assert await other.pull("", 1000) == page, "both doors show the same feed"
                assert await other.log() == log, "both doors show the same log"
            for place, device in self._devices.items():
                if place[0] == number:
                    device.check_equals(page.entries)
            model = verify(ledger, page.entries, log)
            feed, positions, versions = await self._world.stored(phone.user_id)
            assert feed == versions == model.position, "every accepted change took one position"
            assert len(set(positions)) == len(positions), "a position was taken twice"
            assert max(positions, default=0) == feed, "the last position is a record's"
            counts.update(ledger.counts)
            counts.update(conflict.policy for conflict in model.conflicts)
            counts.update({"pushes": len(ledger.pushes), "changes": sum(len(push.changes) for push in ledger.pushes)})
            counts.update({"entries pulled": sum(map(len, ledger.pulled)), "records": len(page.entries)})
            counts.update({"versions": versions, "too close to call": model.photos})
            decided = [case for case in ledger.cases.values() if case.is_decided]
            counts.update({"decisions": len(decided)})
            counts.update({"decisions without an answer": sum(not case.decided for case in decided)})
            counts.update({"conflicts told unasked": len(ledger.heard)})


async def _do(device: CallingDevice | StreamDevice, step: Step) -> None:
    how = step.how
    match step.verb:
        case "edit":
            for edit in how["edits"]:
                device.edit(**edit)
        case "push":
            await device.push(**how)
        case "pull":
            await device.pull(**how)
        case "repeat":
            await device.repeat(**how)
        case "misuse":
            await device.misuse(**how)
        case "decide":
            await device.decide(**how)
        case "cut":
            device.line.cut(**how)
        case "offline":
            device.go_offline()
        case "online":
            device.is_offline = False
        case "anew":
            await device.begin_anew()


def told(counts: Mapping[str, int]) -> str:
    """What happened in a run, on one line."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())
