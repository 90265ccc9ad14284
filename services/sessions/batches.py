"""Owns what batches have in common: every item is read by itself, and a bad one is kept as its refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from runtime.errors import Failure

Raw = TypeVar("Raw")
Good = TypeVar("Good")


def capture(read: Callable[[Raw], Good], items: Iterable[Raw | Failure]) -> list[Good | Failure]:
    """What `read` makes of each item, or the Failure it raises; an item that is a Failure already stays one."""
    captured: list[Good | Failure] = []
    for item in items:
        if isinstance(item, Failure):
            captured.append(item)
            continue
        try:
            captured.append(read(item))
        except Failure as failure:
            captured.append(failure)
    return captured


def named(captured: Iterable[Good | Failure], field: str) -> list[Good | Failure]:
    """The same, with the fields of each Failure named below `field`[index]."""
    return [one.within(f"{field}[{index}]") if isinstance(one, Failure) else one for index, one in enumerate(captured)]
