"""Owns what one user's devices asked and were told, and the claims that must hold of it in the end.

Nothing here knows how the server works: a claim speaks of receipts, pulled pages and the log of conflicts only.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any, NamedTuple

from tests.convergence.model import Change, Data, Key, Met, Model, Receipt, Span

# The server reads the same clock; what is left is rounding.
SLACK = 1000  # microseconds

_last = 0


def now() -> int:
    """Microseconds since 1970; later with each call, whatever happens to the machine's clock."""
    global _last
    _last = max(_last + 1, time.time_ns() // 1000)
    return _last


class Reading(NamedTuple):
    """A phone told the server what its clock shows, so that the server may correct what the phone says of times."""

    shown: int
    sent: int
    heard: int
    """When the server had surely read it; 0: when it had answered the push."""


class Entry(NamedTuple):
    """A record as a pull delivered it."""

    key: Key
    version: int
    data: Data


class Logged(NamedTuple):
    """A conflict as the log shows it."""

    id: str
    key: Key
    policy: str
    server_version: int
    client_version: int
    result: str
    winner: str
    loser: dict[str, Any]


@dataclass(kw_only=True, eq=False)
class Push:
    """A batch of changes under one idempotency key, however often it was sent."""

    device: str
    name: str
    """The idempotency key."""
    changes: Sequence[Change]
    sent: int = 0
    """When it was sent first; 0: not yet."""
    answered: int = 0
    """When it was answered first; 0: not yet."""
    readings: list[Reading] = field(default_factory=list)
    """What was told of the phone's clock, each time that it was sent; empty: nothing."""
    answers: list[list[Receipt]] = field(default_factory=list)

    @property
    def receipts(self) -> list[Receipt]:
        return self.answers[0]

    def times(self) -> list[Span]:
        """When each change was made, as the server must see it: never later than it learnt of the change."""
        first, last = self.sent - SLACK, self.answered + SLACK
        behind = min((one.sent - one.shown - SLACK for one in self.readings), default=0)
        ahead = max(((one.heard or self.answered) - one.shown + SLACK for one in self.readings), default=0)
        return [Span(min(one.time + behind, first), min(one.time + ahead, last)) for one in self.changes]

    def __repr__(self) -> str:
        return f"<push {self.name}>"


@dataclass(kw_only=True, eq=False)
class Case:
    """A conflict that was left to people, and the attempts to decide it."""

    conflict_id: str
    key: Key
    choice: str
    merged: Data
    sent: int = 0
    answered: int = 0
    decided: list[int] = field(default_factory=list)
    """The version that each successful decision was answered; there must not be two."""
    lost: int = 0
    """Attempts without an answer."""
    refused: int = 0
    """Attempts that came too late."""
    attempts: list[str] = field(default_factory=list)
    """Whose they were and what became of them, for people."""

    @property
    def is_decided(self) -> bool:
        return bool(self.decided or self.refused)

    def __repr__(self) -> str:
        return f"<{self.choice} on {self.key} {self.conflict_id}: {self.attempts}>"


Action = Push | Case


@dataclass(kw_only=True)
class Ledger:
    """What the devices of one user asked and were told."""

    user: str
    policies: Mapping[str, str]
    pushes: list[Push] = field(default_factory=list)
    cases: dict[str, Case] = field(default_factory=dict)
    pulled: list[list[Entry]] = field(default_factory=list)
    """For each device, and each time that one began anew: what its pulls delivered, in their order."""
    heard: set[str] = field(default_factory=set)
    """Conflicts that a stream told of unasked."""
    acknowledged: Counter[Key] = field(default_factory=Counter)
    """The highest version of each record that a device was told of."""
    counts: Counter[str] = field(default_factory=Counter)

    def told(self, push: Push, receipts: list[Receipt]) -> None:
        """Notes an answer."""
        push.answers.append(receipts)
        push.answered = push.answered or now()
        for receipt in receipts:
            self.counts[receipt.status] += len(push.answers) == 1
            if receipt.status != "REJECTED":
                self.acknowledged[receipt.key] = max(self.acknowledged[receipt.key], receipt.version)


def verify(ledger: Ledger, feed: Sequence[Entry], log: Sequence[Logged]) -> Model:
    """Every claim about one user, who is quiet by now: `feed` is the whole feed, `log` the whole log of conflicts."""
    every_push_was_answered_and_its_repeats_alike(ledger)
    authors = every_version_has_one_author(ledger, feed, log)
    no_pull_went_back(ledger, feed)
    order = one_order_explains_all(ledger, authors, [*ledger.pulled, feed])
    return the_model_agrees(ledger, authors, order, feed, log)


def every_push_was_answered_and_its_repeats_alike(ledger: Ledger) -> None:
    for push in ledger.pushes:
        assert push.answers, f"{push} was never answered"
        for answer in push.answers:
            assert [one.key for one in answer] == [one.key for one in push.changes], f"{push}: receipts in its order"
            assert answer == push.receipts, f"{push} was repeated and answered otherwise"
            ids = [[one.notice.conflict_id for one in each if one.notice] for each in (answer, push.receipts)]
            assert ids[0] == ids[1], f"{push} was repeated and met its conflicts anew"


def every_version_has_one_author(
    ledger: Ledger, feed: Sequence[Entry], log: Sequence[Logged]
) -> dict[tuple[Key, int], Action]:
    """Versions 1 to n of every record, each by one acknowledged change or one decision; nothing is there twice."""
    authors: dict[tuple[Key, int], Action] = {}
    for push in ledger.pushes:
        for receipt in push.receipts:
            if receipt.status == "APPLIED":
                place = receipt.key, receipt.version
                assert place not in authors, f"{place}: acknowledged to both {authors.get(place)} and {push}"
                authors[place] = push
    unknown: dict[Key, list[Case]] = defaultdict(list)
    for case in ledger.cases.values():
        assert len(case.decided) <= 1, f"{case} was decided twice"
        if case.decided:
            if case.choice != "accept_server":
                authors.setdefault((case.key, case.decided[0]), case)
        elif case.refused and case.choice != "accept_server":
            unknown[case.key].append(case)  # one of the attempts was heard, and who made it was not told so

    keys = [entry.key for entry in feed]
    assert len(set(keys)) == len(keys), "a record is in the feed twice"
    final = {entry.key: entry.version for entry in feed}
    seen = {(entry.key, entry.version): entry.data for entries in [*ledger.pulled, feed] for entry in entries}
    for key, version in authors:
        assert version <= final.get(key, 0), f"version {version} of {key} was acknowledged and is lost"
    for key, version in final.items():
        missing = [(key, one) for one in range(1, version + 1) if (key, one) not in authors]
        # The answer to a decision was lost, and the repeat was told no more than that it was decided. What somebody
        # saw of that version tells whose it is; of one that nobody saw, any of them may be the author.
        for place in sorted(missing, key=lambda one: one not in seen):
            candidates = unknown[key]
            if place in seen:
                candidates = [one for one in candidates if _wanted(ledger, one) == seen[place]]
            assert candidates, f"version {place[1]} of {key} is nobody's"
            authors[place] = candidates[0]
            unknown[key].remove(candidates[0])
    for key, cases in unknown.items():
        others = [case for case in ledger.cases.values() if case.key == key and case not in cases]
        logged = [one for one in log if one.key == key]
        assert not cases, f"{key}: a decision left no version: {cases}; others: {others}; the log: {logged}"
    return authors


def shown(id: str, met: Met) -> Logged:
    """How the log must show what met."""
    return Logged(
        id,
        met.key,
        met.policy,
        met.server_version,
        met.client_version,
        "manual_required" if met.winner == "none" else "resolved",
        met.winner,
        _in_doubles(met.loser or {}),
    )


def _in_doubles(value: Any) -> Any:
    """As the log shows it, whose type for JSON knows no other numbers."""
    if isinstance(value, dict):
        return {name: _in_doubles(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_in_doubles(one) for one in value]
    return float(value) if isinstance(value, int) else value


def _wanted(ledger: Ledger, case: Case) -> Data:
    if case.choice == "merge":
        return case.merged
    for push in ledger.pushes:
        for change, receipt in zip(push.changes, push.receipts, strict=True):
            if receipt.notice and receipt.notice.conflict_id == case.conflict_id:
                return change.data
    raise LookupError(case)


def no_pull_went_back(ledger: Ledger, feed: Sequence[Entry]) -> None:
    """A device that pulls page after page is given each version once at most, and none that is older than another."""
    final = {entry.key: entry for entry in feed}
    for entries in ledger.pulled:
        last: dict[Key, Entry] = {}
        for entry in entries:
            before = last.get(entry.key)
            assert before is None or before.version < entry.version, f"{entry.key}: {entry.version} after {before}"
            last[entry.key] = entry
        for key, entry in last.items():
            assert entry.version <= final[key].version, f"{key}: a pull saw a version that is gone"


def one_order_explains_all(
    ledger: Ledger, authors: Mapping[tuple[Key, int], Action], delivered: Iterable[Sequence[Entry]]
) -> list[Action]:
    """An order, one after the other, in which every receipt and every pulled page comes out as it did.

    It keeps to real time: what was answered before another was sent comes first. If there is none, then somebody was
    told something that no server without a fault could have said.
    """
    sorter: TopologicalSorter[object] = TopologicalSorter()
    reasons: dict[tuple[object, object], str] = {}

    def comes_before(first: Action | None, second: Action | None, why: str) -> None:
        if first is not None and second is not None and first is not second:
            sorter.add(second, first)
            reasons[first, second] = why

    actions = [*ledger.pushes, *(case for case in ledger.cases.values() if case.is_decided)]
    for action in actions:
        sorter.add(action)
        for key, version in _sights(action):
            # It saw this version: it comes after who made it, and before who made the next one.
            comes_before(authors.get((key, version)), action, f"made the version {version} of {key} that it saw")
            comes_before(action, authors.get((key, version + 1)), f"saw {key} before version {version + 1}")
    for (key, version), author in authors.items():
        comes_before(authors.get((key, version - 1)), author, f"made the version of {key} before {version}")
    for entries in delivered:
        # Pages come in the order of the feed, and the feed is in the order in which things were stored.
        places = [authors[entry.key, entry.version] for entry in entries]
        for first, second in pairwise(places):
            comes_before(first, second, "was delivered before it")

    # A chain through all moments of sending and answering stands for real time.
    moments = [(action.sent, 0, action) for action in actions] + [(action.answered, 1, action) for action in actions]
    for mark, (_, is_answer, action) in enumerate(sorted(moments, key=lambda one: one[:2]), 1):
        sorter.add(mark, mark - 1)
        if is_answer:
            sorter.add(mark, action)
        else:
            sorter.add(action, mark)
    try:
        return [one for one in sorter.static_order() if isinstance(one, Push | Case)]
    except CycleError as error:
        cycle = [one for one in error.args[1] if isinstance(one, Push | Case)]
        told = [
            f"{first} {reasons.get((first, second), 'was answered before it was sent')}, {second}"
            for first, second in pairwise(cycle)
        ]
        raise AssertionError("no order explains what was told:\n" + "\n".join(told)) from None


def _sights(action: Action) -> Iterable[tuple[Key, int]]:
    """Which versions an action was told to have found, beside those that it made."""
    if isinstance(action, Case):
        if action.decided:
            yield action.key, action.decided[0]
        return
    for receipt in action.receipts:
        if receipt.status != "APPLIED":
            yield receipt.key, receipt.version


def the_model_agrees(
    ledger: Ledger,
    authors: Mapping[tuple[Key, int], Action],
    order: Sequence[Action],
    feed: Sequence[Entry],
    log: Sequence[Logged],
) -> Model:
    """In that order the model tells the same receipts, the same contents, the same feed and the same conflicts."""
    model = Model(ledger.policies)
    met: dict[str, Met] = {}
    for action in order:
        if isinstance(action, Case):
            span = Span(action.sent - SLACK, action.answered + SLACK)
            version = model.decide(met[action.conflict_id], action.choice, action.merged, span)
            if action.decided:
                assert version == action.decided[0], f"{action}: the model has version {version}"
            continue
        expected, conflicts = model.push(action.changes, action.times(), action.receipts)
        for told, one, conflict in zip(action.receipts, expected, conflicts, strict=True):
            assert told == one, f"{action}: the server said {told}, the model {one}"
            if conflict is not None and told.notice is not None:
                assert told.notice.conflict_id not in met, f"{action}: one conflict for two changes"
                met[told.notice.conflict_id] = conflict

    assert [tuple(entry) for entry in feed] == model.feed(), "the feed is the model's, in its order"
    for entries in ledger.pulled:
        for key, version, data in entries:
            assert data == model.history[key, version], f"{key}: a pull saw other content in version {version}"
    assert len({one.id for one in log}) == len(log), "a conflict is in the log twice"
    in_log = {one.id: one for one in log}
    told_of = {id: shown(id, one) for id, one in met.items()}
    assert len(told_of) == len(model.conflicts), "every conflict was told to the phone that ran into it"
    for id, one in told_of.items():
        assert in_log.get(id) == one, f"the log shows {in_log.get(id)}, not {one}"
    assert ledger.heard <= in_log.keys(), "a phone was told of a conflict that is not in the log"
    assert len(in_log) == len(told_of), "the log holds conflicts that nobody was told of"
    return model
