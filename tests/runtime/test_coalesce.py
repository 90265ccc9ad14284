"""Asking once for what many want: every answer is read after it was asked for, and nobody waits on another's fate."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from runtime.coalesce import Coalesced


class Shelf:
    """Knows the square of every key but 13, and notes how it is asked."""

    def __init__(self) -> None:
        self.loads: list[list[int]] = []
        self.broken = False

    async def load(self, keys: Sequence[int]) -> dict[int, int]:
        self.loads.append(list(keys))
        await asyncio.sleep(0)
        if self.broken:
            raise ConnectionError("the shelf is away")
        return {key: key * key for key in keys if key != 13}


async def test_a_caller_who_is_alone_is_served_at_once() -> None:
    shelf = Shelf()
    assert await Coalesced(shelf.load).get(3) == 9
    assert shelf.loads == [[3]]


async def test_many_callers_share_a_load() -> None:
    shelf = Shelf()
    coalesced = Coalesced(shelf.load)
    answers = await asyncio.gather(*(coalesced.get(key % 5) for key in range(50)))
    assert answers == [(key % 5) ** 2 for key in range(50)]
    assert len(shelf.loads) == 1


async def test_nothing_is_remembered() -> None:
    shelf = Shelf()
    coalesced = Coalesced(shelf.load)
    assert [await coalesced.get(2) for _ in range(3)] == [4, 4, 4]
    assert shelf.loads == [[2], [2], [2]]


async def test_what_is_not_there_is_none() -> None:
    assert await Coalesced(Shelf().load).get(13) is None


async def test_a_load_that_fails_fails_for_its_callers_and_not_for_the_next() -> None:
    shelf = Shelf()
    coalesced = Coalesced(shelf.load)
    shelf.broken = True
    failed = await asyncio.gather(*(coalesced.get(key) for key in range(3)), return_exceptions=True)
    assert [type(one) for one in failed] == [ConnectionError] * 3
    shelf.broken = False
    assert await coalesced.get(4) == 16


async def test_a_caller_who_goes_away_takes_nobody_along() -> None:
    coalesced = Coalesced(Shelf().load)
    going, staying = asyncio.create_task(coalesced.get(5)), asyncio.create_task(coalesced.get(5))
    await asyncio.sleep(0)
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    assert await staying == 25
