"""What a report comes to, against adding it up the long way."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.health.counts import Counts
from services.health.outcomes_domain import Outcome, Said
from services.health.outcomes_sums import sums_of

BEGIN = datetime(2026, 2, 26, 10, 58, 30, tzinfo=UTC)

words = st.sampled_from([None, "one", "other"])
saids = st.builds(Said, words, words, words, words, st.none() | st.integers(-9, 9))
counts = st.builds(Counts, *[st.integers(0, 5)] * len(Counts._fields))


@st.composite
def outcomes(draw: st.DrawFn) -> list[Outcome]:
    """Of a few devices within some minutes around an hour's end, no two in the same second, in any order."""
    seconds = draw(st.lists(st.integers(0, 300), unique=True, max_size=12))
    return [
        Outcome(
            tenant_id=draw(st.integers(1, 2)),
            user_id=draw(st.sampled_from([None, UUID(int=1), UUID(int=2)])),
            device_id=draw(st.sampled_from(["", "phone", "watch"])),
            domain=draw(st.sampled_from(["", "journal"])),
            time=BEGIN + timedelta(seconds=one),
            counts=draw(counts),
            said=draw(saids),
        )
        for one in seconds
    ]


def total(some: Iterable[Outcome]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(one.counts for one in some), strict=True)))


def last(some: Iterable[Outcome], word: str) -> Any:
    """What was said last, by whoever said anything of it."""
    said = {one.time: getattr(one.said, word) for one in some if getattr(one.said, word) is not None}
    return said[max(said)] if said else None


def cut(time: datetime, digits: int) -> str:
    return time.isoformat()[:digits]


@given(outcomes())
def test_each_sum_is_of_what_belongs_to_it_and_nothing_is_left_out(given: list[Outcome]) -> None:
    minutes, devices, hours = sums_of(given)
    named = [one for one in given if one.user_id and one.device_id]
    for minute, counts in minutes.items():
        assert counts == total(
            one
            for one in given
            if (one.tenant_id, one.domain, cut(one.time, 16)) == (minute.tenant_id, minute.domain, cut(minute.time, 16))
        )
    for device, known in devices.items():
        own = [one for one in named if (one.user_id, one.device_id, one.tenant_id) == device]
        assert known.counts == total(own)
        assert known.say_time == max(one.time for one in own)
        assert known.last_sync_time == max((one.time for one in own if one.counts.syncs), default=None)
        assert known.said == tuple(last(own, word) for word in Said._fields)
    for hour, counts in hours.items():
        own = [one for one in named if (one.user_id, one.device_id, one.tenant_id) == hour[:3]]
        assert counts == total(one for one in own if cut(one.time, 13) == cut(hour.time, 13))
    for sums, of in (
        (minutes.values(), given),
        ([one.counts for one in devices.values()], named),
        (hours.values(), named),
    ):
        assert tuple(map(sum, zip(*sums, strict=True))) == total(of)
    assert all(cut(one.time, 19).endswith(":00") for one in minutes)
    assert all(cut(one.time, 19).endswith(":00:00") for one in hours)
