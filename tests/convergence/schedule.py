"""Owns what happens in a run, and when: every step of every phone and every fault, told by the seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.convergence.model import Data, Key

USERS = 3
DEVICES = 4  # of each user
STEPS_PER_ROUND = 5  # of each device

# The tenant's policies, one domain for each; `work_order` is given this one by its administrator.
POLICIES = {
    "journal": "client_wins",
    "attendance": "server_wins",
    "task": "most_recent_wins",
    "ticket": "preserve_escalation",
    "work_order": "manual",
}

# How often each thing is done, of a thousand steps.
VERBS = {
    "edit": 440,
    "push": 250,
    "pull": 170,
    "repeat": 30,
    "misuse": 6,
    "decide": 40,
    "cut": 40,
    "offline": 20,
    "anew": 4,
}
FAULTS = (
    "a replica is killed",
    "the other replica is killed",
    "Redis is gone for a while",
    "the database crashes",
    "a replica is told to stop",
    "every connection breaks",
)
FAULT_EVERY = 3  # rounds


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that a phone does."""

    verb: str
    how: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that breaks while the phones of a round are at it."""

    kind: str
    after_calls: int
    """How many calls of the round are on their way by then."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What all phones do at the same time, each its own steps one after the other."""

    steps: dict[tuple[int, int], list[Step]]
    """By user and device."""
    fault: Fault | None


def rounds(seed: int, steps: int) -> Iterator[Round]:
    """A run of at least `steps` steps. The same seed gives the same run."""
    luck = random.Random(seed)
    phones = [_Phone(luck, user, device) for user in range(USERS) for device in range(DEVICES)]
    count = -(-steps // (len(phones) * STEPS_PER_ROUND))
    for number in range(count):
        fault = None
        if number % FAULT_EVERY == 1:
            fault = Fault(kind=FAULTS[number // FAULT_EVERY % len(FAULTS)], after_calls=luck.randrange(5, 25))
        taken = {(one.user, one.device): [one.step() for _ in range(STEPS_PER_ROUND)] for one in phones}
        yield Round(steps=taken, fault=fault)


class _Phone:
    """Chooses the steps of one phone."""

    def __init__(self, luck: random.Random, user: int, device: int) -> None:
        self.user = user
        self.device = device
        self._luck = luck
        self._count = 0
        self._is_offline = False

    def step(self) -> Step:
        luck = self._luck
        self._count += 1
        if self._is_offline and luck.random() < 0.2:
            self._is_offline = False
            return Step(verb="online", how={})
        (verb,) = luck.choices(list(VERBS), list(VERBS.values()))
        match verb:
            case "edit":
                return Step(verb=verb, how={"edits": self._edits()})
            case "push":
                return Step(verb=verb, how={"newest_first": luck.random() < 0.2, "twice": luck.random() < 0.15})
            case "pull":
                pages = luck.choice([None, None, 1, 2])
                return Step(verb=verb, how={"limit": luck.choice([3, 10, 50, 1000]), "pages": pages})
            case "cut":
                return Step(verb=verb, how={"where": luck.choice(["request", "answer", "answer"])})
            case "offline":
                self._is_offline = True
                return Step(verb=verb, how={})
            case "anew":
                return Step(verb=verb, how={})
            case _:
                return Step(verb=verb, how={"which": luck.random()})

    def _edits(self) -> list[dict[str, Any]]:
        luck = self._luck
        count = luck.choice([1, 1, 2, 3, 5])
        if count > 1 and luck.random() < 0.25:
            keys = list({self._key(): None for _ in range(count)})
            return [self._edit(number, key, f"group-{self._count}") for number, key in enumerate(keys)]
        return [self._edit(number, self._key(), "") for number in range(count)]

    def _key(self) -> Key:
        luck = self._luck
        domain = luck.choice(list(POLICIES))
        if luck.random() < 0.2:
            return Key(domain, f"own-{self.device}-{luck.randrange(40)}")
        return Key(domain, f"shared-{luck.randrange(4)}")

    def _edit(self, number: int, key: Key, group: str) -> dict[str, Any]:
        luck = self._luck
        how: dict[str, Any] = {"key": key, "group": group}
        how["says_base"] = luck.random() > 0.05
        how["stale"] = luck.choice([0, 0, 0, 0, 0, 1, 2])
        chance = luck.random()
        if chance < 0.12:
            return {**how, "data": None}
        if chance < 0.14:
            return {**how, "key": Key("task", key.id), "data": {"notes": "no title"}, "refusal": "FIELD_MISSING"}
        if chance < 0.16:
            return {**how, "key": Key("nonsense", key.id), "data": {"title": "x"}, "refusal": "FIELD_INVALID"}
        # A mark that nothing else bears, or now and then words that another phone may write, too.
        words = f"{self.user}.{self.device}.{self._count}.{number}" if chance < 0.92 else "the same words"
        return {**how, "data": self._content(key.domain, words)}

    def _content(self, domain: str, words: str) -> Data:
        luck = self._luck
        data: Data = {"title": words, "exactly": 2**53 + luck.randrange(2), "nested": {"list": [1, 2.5, None, "ü"]}}
        if domain == "ticket":
            data |= {"status": luck.choice(["open", "shut"])}
            if luck.random() < 0.3:
                data |= {"escalation_level": luck.randrange(3), "escalated_by": words}
        return data
