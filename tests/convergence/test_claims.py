"""The claims themselves: a true history passes, and each lie about it is caught by the claim that is meant to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.convergence.ledger import Case, Entry, Ledger, Push, shown, verify
from tests.convergence.model import Change, Data, Key, Met, Model, Span
from tests.convergence.schedule import POLICIES

PAGE, ORDER = Key("journal", "page"), Key("work_order", "order")
SECOND = 1_000_000


class Story:
    """Two phones, a server that is the model, and a ledger that is true until somebody forges it."""

    def __init__(self) -> None:
        self.ledger = Ledger(user="user", policies=POLICIES)
        self.clock = 0
        self._model = Model(POLICIES)
        self._ids: dict[str, Met] = {}
        self._read = [0, 0]
        self.ledger.pulled = [[], []]

        self.push("first", PAGE, {"title": "one"}, base=0)
        self.pull(0)
        self.push("second", PAGE, {"title": "two"}, base=1)
        self.push("overruling", PAGE, {"title": "three"}, base=1)
        self.pull(0)
        self.push("ordered", ORDER, {"title": "paint"}, base=0)
        self.push("open", ORDER, {"title": "plaster"}, base=0)
        self.decide("accept_client")
        self.push("deleted", PAGE, None, base=3)
        self.pull(0)
        self.pull(1)
        self.feed = [Entry(*one) for one in self._model.feed()]
        self.log = [shown(id, met) for id, met in self._ids.items()]

    def verify(self) -> None:
        verify(self.ledger, self.feed, self.log)

    def push(self, name: str, key: Key, data: Data, *, base: int | None) -> None:
        change = Change(key=key, data=data, base=base, time=self._tick())
        push = Push(device="phone", name=name, changes=[change], sent=self._tick())
        (receipt,), (met,) = self._model.push(push.changes, [Span(change.time, change.time)], [None])
        if met is not None and receipt.notice is not None:
            receipt = replace(receipt, notice=replace(receipt.notice, conflict_id=f"conflict of {name}"))
            self._ids[f"conflict of {name}"] = met
        self._tick()
        self.ledger.told(push, [receipt])
        push.answered = self._tick()
        self.ledger.pushes.append(push)

    def decide(self, choice: str) -> None:
        id, met = next((id, met) for id, met in self._ids.items() if met.winner == "none")
        case = Case(conflict_id=id, key=met.key, choice=choice, merged=None, sent=self._tick())
        case.decided.append(self._model.decide(met, choice, None, Span(self.clock, self.clock)))
        case.answered = self._tick()
        self.ledger.cases[id] = case

    def pull(self, phone: int) -> None:
        news = [one for one in self._model.feed() if self._model.records[one[0]].position > self._read[phone]]
        self.ledger.pulled[phone] += [Entry(*one) for one in news]
        self._read[phone] = self._model.position

    def of(self, name: str) -> Push:
        return next(push for push in self.ledger.pushes if push.name == name)

    def _tick(self) -> int:
        self.clock += SECOND
        return self.clock


def test_a_true_history_passes() -> None:
    Story().verify()


def test_an_answer_that_was_lost_is_no_lie() -> None:
    """The decision was heard, its answer was not, and the repeat came too late."""
    story = Story()
    (case,) = story.ledger.cases.values()
    case.decided, case.lost, case.refused = [], 1, 1
    story.verify()


def _an_acknowledged_change_is_gone(story: Story) -> None:
    story.feed[-1] = Entry(PAGE, 3, {"title": "three"})


def _a_change_is_there_that_nobody_made(story: Story) -> None:
    story.ledger.pushes.remove(story.of("second"))


def _two_changes_are_told_the_same_version(story: Story) -> None:
    _tell(story.of("overruling"), version=2)


def _a_repeat_is_applied_again(story: Story) -> None:
    push = story.of("second")
    push.answers.append([replace(push.receipts[0], version=4)])


def _a_push_is_never_answered(story: Story) -> None:
    story.of("ordered").answers.clear()


def _a_page_leaves_a_record_out(story: Story) -> None:
    story.feed.pop(0)


def _a_pull_goes_back(story: Story) -> None:
    story.ledger.pulled[0].append(story.ledger.pulled[0][0])


def _a_record_is_in_the_feed_twice(story: Story) -> None:
    story.feed.append(story.feed[0])


def _the_feed_is_out_of_order(story: Story) -> None:
    story.feed.reverse()


def _a_pull_shows_what_was_never_stored(story: Story) -> None:
    story.ledger.pulled[1][-1] = story.ledger.pulled[1][-1]._replace(data={"title": "else"})


def _a_duplicate_is_said_of_what_is_new(story: Story) -> None:
    _tell(story.of("open"), status="DUPLICATE", notice=None)


def _somebody_is_told_an_old_version_later(story: Story) -> None:
    """As a replica would that reads behind the others."""
    story.push("late", ORDER, {"title": "paint"}, base=None)
    receipt = story.of("late").receipts[0]
    assert receipt.status == "CONFLICT"
    _tell(story.of("late"), status="DUPLICATE", version=1, notice=None)


def _the_wrong_side_wins(story: Story) -> None:
    push = story.of("overruling")
    _tell(push, status="CONFLICT", version=2)
    story.feed[-1] = Entry(PAGE, 3, None)
    _tell(story.of("deleted"), version=3)
    story.ledger.pulled = [[]]


def _a_conflict_is_not_in_the_log(story: Story) -> None:
    story.log.pop()


def _a_conflict_is_in_the_log_twice(story: Story) -> None:
    story.log.append(story.log[0])


def _the_log_keeps_the_winner(story: Story) -> None:
    story.log[0] = story.log[0]._replace(loser={"title": "three"})


def _a_conflict_is_decided_twice(story: Story) -> None:
    next(iter(story.ledger.cases.values())).decided.append(3)


LIES: dict[Callable[[Story], None], str] = {
    _an_acknowledged_change_is_gone: "was acknowledged and is lost",
    _a_change_is_there_that_nobody_made: "is nobody's",
    _two_changes_are_told_the_same_version: "acknowledged to both",
    _a_repeat_is_applied_again: "repeated and answered otherwise",
    _a_push_is_never_answered: "never answered",
    _a_page_leaves_a_record_out: "is lost",
    _a_pull_goes_back: "after",
    _a_record_is_in_the_feed_twice: "in the feed twice",
    _the_feed_is_out_of_order: "no order explains",
    _a_pull_shows_what_was_never_stored: "other content",
    _a_duplicate_is_said_of_what_is_new: "the model",
    _somebody_is_told_an_old_version_later: "no order explains",
    _the_wrong_side_wins: "the model",
    _a_conflict_is_not_in_the_log: "the log shows None",
    _a_conflict_is_in_the_log_twice: "in the log twice",
    _the_log_keeps_the_winner: "the log shows",
    _a_conflict_is_decided_twice: "decided twice",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__.strip("_"))
def test_a_lie_is_caught(lie: Callable[[Story], None]) -> None:
    story = Story()
    lie(story)
    with pytest.raises(AssertionError, match=LIES[lie]):
        story.verify()


def _tell(push: Push, **otherwise: object) -> None:
    push.answers[0] = [replace(push.receipts[0], **otherwise)]  # type: ignore[arg-type]


def test_the_model_is_no_pushover() -> None:
    """The five policies on one meeting, by the words of the design."""
    server, client = {"title": "s", "status": "open", "escalation_level": 2}, {"title": "c", "status": "shut"}
    merged = {"title": "c", "status": "open", "escalation_level": 2}
    key, before = Key("any", "one"), Span(1, 1)
    for policy, when, data, winner in [
        ("client_wins", 0, client, "client"),
        ("server_wins", 2, server, "server"),
        ("most_recent_wins", 2, client, "client"),
        ("most_recent_wins", 1, server, "server"),
        ("most_recent_wins", 0, server, "server"),
        ("preserve_escalation", 2, merged, "merged"),
        ("manual", 2, server, "none"),
    ]:
        model = Model({"any": policy})
        model.push([Change(key=key, data=server, base=0, time=0)], [before], [None])
        model.push([Change(key=key, data=client, base=7, time=0)], [Span(when, when)], [None])
        assert (model.records[key].data, model.conflicts[0].winner) == (data, winner), policy
