"""Owns the tiers: what each one allows, and by what names a store sells it; every service reads its part of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from runtime.config import ConfigError

FILE: Final = Path(__file__).parent / "tiers.json"
FREE_TIER: Final = "free"
MAX_NAME_CHARS: Final = 64


@dataclass(frozen=True, kw_only=True)
class Tier:
    """What an account can be subscribed to, or free."""

    name: str
    puzzles_per_day: int | None
    """New puzzle sessions per UTC day of their timestamp; None: any number."""
    upload_bytes: int
    """Bytes of all files of a user."""
    entitlements: frozenset[str]
    """What a store's account calls it."""
    products: frozenset[str]
    """What is sold of it, by the names of the stores."""


@dataclass(frozen=True, kw_only=True)
class Tiers:
    """Every tier, the free one first, the most generous one last."""

    all: tuple[Tier, ...]

    def __contains__(self, name: object) -> bool:
        return name in self._ranks

    def named(self, name: str) -> Tier:
        """The tier of a token; one that the file has lost is as good as the best one, for somebody pays for it."""
        return self.all[self._ranks.get(name, len(self.all) - 1)]

    def rank(self, name: str) -> int:
        """How good a tier is, from 0, which is free."""
        return self._ranks.get(name, len(self.all) - 1)

    def sold_as(self, entitlements: Collection[str], products: Collection[str]) -> str | None:
        """The best tier that a store sells under one of these names; None: none of them is a tier's."""
        for tier in reversed(self.all):
            if tier.entitlements.intersection(entitlements) or tier.products.intersection(products):
                return tier.name
        return None

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return {tier.name: rank for rank, tier in enumerate(self.all)}


def read_tiers(file: Path = FILE) -> Tiers:
    """The tiers that `file` lists. Raises ConfigError when it is not what tiers.json is."""
    try:
        tiers = Tiers(all=tuple(_tier(one) for one in json.loads(file.read_bytes())["tiers"]))
        if not tiers.all or tiers.all[0].name != FREE_TIER or len({one.name for one in tiers.all}) < len(tiers.all):
            raise ValueError("the tiers have names of their own, and the first one is free")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"SATCHEL_TIERS: {file} cannot be read: {error!r}") from None
    return tiers


def _tier(said: dict[str, Any]) -> Tier:
    name, per_day, room = said["name"], said["puzzles_per_day"], said["upload_bytes"]
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_CHARS:
        raise ValueError(f"a tier has a name of at most {MAX_NAME_CHARS} characters")
    if not _is_count(room) or not (per_day is None or _is_count(per_day)):
        raise ValueError(f"{name}: a limit is a whole number from 0")
    return Tier(
        name=name,
        puzzles_per_day=per_day,
        upload_bytes=room,
        entitlements=_names(said.get("entitlements", ())),
        products=_names(said.get("products", ())),
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _names(said: Iterable[object]) -> frozenset[str]:
    if isinstance(said, str):
        raise TypeError("names stand in a list")
    return frozenset(str(one) for one in said)
