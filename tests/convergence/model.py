"""Owns what the server promises of one user's records, told without the server: one change after the other, on a dict.

Written from the words of the API and of the design; it shares no line with the engine. Everything that a push, a pull
or a decision may answer follows from `Model`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

Data = dict[str, Any] | None
"""What a record holds; None: it is deleted."""


class Key(NamedTuple):
    domain: str
    id: str


class Span(NamedTuple):
    """A moment as well as somebody outside can know it, in microseconds since 1970."""

    earliest: int
    latest: int


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a phone did to a record."""

    key: Key
    data: Data
    base: int | None
    """The version that was changed, 0 for none; None: the phone does not say."""
    time: int
    """By the phone's clock."""
    group: str = ""
    refusal: str = ""
    """Why the server cannot take it, if so: the reason that it must give."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What a receipt tells of a conflict."""

    server_version: int
    client_version: int
    server_data: Data
    is_open: bool
    conflict_id: str = field(default="", compare=False)
    """The server's to choose."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    key: Key
    status: str
    """APPLIED, DUPLICATE, CONFLICT or REJECTED."""
    version: int
    reason: str = ""
    notice: Notice | None = None


@dataclass(kw_only=True)
class Met:
    """Two versions that met, as the log must show it."""

    key: Key
    policy: str
    server_version: int
    client_version: int
    server: Data
    client: Data
    winner: str
    """client, server, merged or none."""

    @property
    def loser(self) -> Data:
        """The losing side; of one that nobody has decided, the phone's."""
        return self.server if self.winner == "client" else self.client


class Side(NamedTuple):
    data: Data
    time: Span


class Verdict(NamedTuple):
    winner: str
    data: Data


# A race of clocks that is too close to call from outside: was the phone's change the later one?
Photo = Callable[[], bool]


def client_wins(server: Side, client: Side, photo: Photo) -> Verdict:
    return Verdict("client", client.data)


def server_wins(server: Side, client: Side, photo: Photo) -> Verdict:
    return Verdict("server", server.data)


def most_recent_wins(server: Side, client: Side, photo: Photo) -> Verdict:
    if client.time.earliest > server.time.latest:
        return Verdict("client", client.data)
    if client.time.latest <= server.time.earliest:  # a tie goes to the server
        return Verdict("server", server.data)
    return Verdict("client", client.data) if photo() else Verdict("server", server.data)


def preserve_escalation(server: Side, client: Side, photo: Photo) -> Verdict:
    if server.data is None:
        return Verdict("client", client.data)
    if client.data is None:  # a ticket that was escalated cannot be deleted by a phone that did not know
        escalated = bool(server.data.get("escalation_level"))
        return Verdict("server", server.data) if escalated else Verdict("client", None)
    merged = dict(client.data)
    for name in ("escalation_level", "escalated_at", "escalated_by", "status"):
        merged.pop(name, None)
        if name in server.data:
            merged[name] = server.data[name]
    return Verdict("merged", merged)


def manual(server: Side, client: Side, photo: Photo) -> Verdict:
    return Verdict("none", server.data)


POLICIES = {
    "client_wins": client_wins,
    "server_wins": server_wins,
    "most_recent_wins": most_recent_wins,
    "preserve_escalation": preserve_escalation,
    "manual": manual,
}


class Held(NamedTuple):
    """What the server holds under a key."""

    version: int
    position: int
    data: Data
    time: Span


class Model:
    """One user's records on a server that never fails."""

    def __init__(self, policies: Mapping[str, str]) -> None:
        """`policies`: the policy of each domain."""
        self.policies = policies
        self.position = 0
        self.records: dict[Key, Held] = {}
        self.history: dict[tuple[Key, int], Data] = {}
        """What each version of each record held."""
        self.conflicts: list[Met] = []
        self.counted = 0
        """Changes that count as pushed: all but the rejected ones."""
        self.photos = 0
        """Races that were too close to call."""

    def push(
        self, changes: Sequence[Change], times: Sequence[Span], told: Sequence[Receipt | None]
    ) -> tuple[list[Receipt], list[Met | None]]:
        """The receipts of a push, and what met.

        `times`: when each change was made, by the server's clock. `told`, the server's own receipts, is looked at only
        where two clocks were too close to tell which was ahead, and both answers would be right.
        """
        receipts: dict[int, Receipt] = {}
        met: dict[int, Met | None] = {}
        for first, change in enumerate(changes):
            if first in receipts:
                continue  # decided with its group
            members = [at for at, one in enumerate(changes) if change.group and one.group == change.group] or [first]
            before = self.position, dict(self.records), dict(self.history)
            for at in members:
                said = told[at]
                lost = said is not None and said.status == "CONFLICT"
                receipts[at], met[at] = self._change(changes[at], times[at], lambda lost=lost: not lost)
            if len(members) > 1 and any(receipts[at].status in ("CONFLICT", "REJECTED") for at in members):
                self.position, self.records, self.history = before
                for at in members:
                    key, held = changes[at].key, self.records.get(changes[at].key)
                    version = held.version if held else 0
                    if receipts[at].status in ("CONFLICT", "REJECTED"):
                        receipts[at] = replace(receipts[at], version=version)
                    else:
                        receipts[at] = Receipt(key=key, status="REJECTED", version=version, reason="ATOMIC_GROUP")
                        met[at] = None
            self.conflicts += [one for at in members if (one := met[at])]
        self.counted += sum(receipt.status != "REJECTED" for receipt in receipts.values())
        return [receipts[at] for at in range(len(changes))], [met[at] for at in range(len(changes))]

    def decide(self, met: Met, choice: str, merged: Data, time: Span) -> int:
        """Somebody decides a conflict that was left open; the record's version afterwards."""
        assert met.winner == "none", "a conflict is decided once"
        met.winner = {"accept_server": "server", "accept_client": "client", "merge": "merged"}[choice]
        wanted = {"accept_server": self.records[met.key].data, "accept_client": met.client, "merge": merged}[choice]
        if wanted != self.records[met.key].data:
            self._store(met.key, wanted, time)
        return self.records[met.key].version

    def feed(self) -> list[tuple[Key, int, Data]]:
        """Every record as it stands, deleted ones too, in the order in which they were changed last."""
        return [(key, held.version, held.data) for key, held in sorted(self.records.items(), key=lambda one: one[1][1])]

    def _change(self, change: Change, time: Span, photo: Photo) -> tuple[Receipt, Met | None]:
        key, held = change.key, self.records.get(change.key)
        if change.refusal:
            version = held.version if held else 0
            return Receipt(key=key, status="REJECTED", version=version, reason=change.refusal), None
        if held is None and change.data is None:
            return Receipt(key=key, status="DUPLICATE", version=0), None
        if held is None or (change.base == held.version and change.data != held.data):
            return Receipt(key=key, status="APPLIED", version=self._store(key, change.data, time)), None
        if change.data == held.data:
            return Receipt(key=key, status="DUPLICATE", version=held.version), None

        policy = self.policies[key.domain]
        clash = self._too_close(photo)
        winner, data = POLICIES[policy](Side(held.data, held.time), Side(change.data, time), clash)
        met = Met(
            key=key,
            policy=policy,
            server_version=held.version,
            client_version=change.base or 0,
            server=held.data,
            client=change.data,
            winner=winner,
        )
        notice = Notice(
            server_version=held.version,
            client_version=change.base or 0,
            server_data=held.data,
            is_open=winner == "none",
        )
        if winner in ("server", "none"):
            return Receipt(key=key, status="CONFLICT", version=held.version, notice=notice), met
        if data == held.data:
            return Receipt(key=key, status="DUPLICATE", version=held.version, notice=notice), met
        return Receipt(key=key, status="APPLIED", version=self._store(key, data, time), notice=notice), met

    def _store(self, key: Key, data: Data, time: Span) -> int:
        held = self.records.get(key)
        version = held.version + 1 if held else 1
        self.position += 1
        self.records[key] = Held(version, self.position, data, time)
        self.history[key, version] = data
        return version

    def _too_close(self, photo: Photo) -> Photo:
        def ask() -> bool:
            self.photos += 1
            return photo()

        return ask
