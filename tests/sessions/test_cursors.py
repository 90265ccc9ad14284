"""The cursors of the feed: opaque to phones, each user's own, and safe to take from anybody."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from runtime.errors import Failure
from services.sessions.sync_domain import Place, decode_cursor, encode_cursor

positions = st.integers(min_value=0, max_value=2**63 - 1)
places = st.builds(Place, positions, positions)
users = st.uuids()
choices = st.lists(st.sampled_from(["journal", "puzzle", "task", "ticket"]), unique=True).map(sorted)


def refused(cursor: str, user: UUID) -> bool:
    """Whether a cursor is refused as one should be."""
    with pytest.raises(Failure) as raised:
        decode_cursor(cursor, user, ())
    return [(one.field, one.reason) for one in raised.value.violations] == [("cursor", "INVALID_FORMAT")]


@given(places, users, choices)
def test_a_cursor_is_read_as_it_was_written(place: Place, user: UUID, domains: list[str]) -> None:
    read = decode_cursor(encode_cursor(place, user, domains), user, domains)
    # Behind its floor a reader needs none any more.
    assert read == (place if place.floor > place.position else Place(place.position, 0))


@given(positions, users, choices)
def test_a_cursor_of_the_whole_feed_goes_with_every_choice_of_domains(
    position: int, user: UUID, domains: list[str]
) -> None:
    assert decode_cursor(encode_cursor(Place(position, 0), user, ()), user, domains).position == position


@given(positions, users, choices.filter(bool), choices)
def test_a_cursor_of_a_choice_of_domains_goes_with_no_other(
    position: int, user: UUID, domains: list[str], others: list[str]
) -> None:
    assume(domains != others)
    cursor = encode_cursor(Place(position, 0), user, domains)
    with pytest.raises(Failure):
        decode_cursor(cursor, user, others)


@given(positions, users, users)
def test_a_cursor_of_another_user_is_refused(position: int, user: UUID, other: UUID) -> None:
    assume(user != other)
    assert refused(encode_cursor(Place(position, 0), user, ()), other)


@given(st.text(min_size=1, max_size=40), users)
@example("=", UUID(int=0))
@example("A" * 24, UUID(int=0))
@example("\ud83d", UUID(int=0))
def test_a_made_up_cursor_is_refused(cursor: str, user: UUID) -> None:
    assert refused(cursor, user)


@given(positions, users, st.data())
def test_a_cursor_that_was_cut_is_refused(position: int, user: UUID, data: st.DataObject) -> None:
    cursor = encode_cursor(Place(position, 0), user, ())
    assert refused(cursor[: data.draw(st.integers(min_value=1, max_value=len(cursor) - 1))], user)


@given(positions, users, st.integers(min_value=0, max_value=23), st.sampled_from("ABCXYZabcxyz0189-_+/= é"))
def test_a_cursor_that_was_tampered_with_leads_nowhere_else(position: int, user: UUID, at: int, letter: str) -> None:
    cursor = encode_cursor(Place(position, 0), user, ())
    changed = f"{cursor[:at]}{letter}{cursor[at + 1 :]}"
    try:
        assert decode_cursor(changed, user, ()).position == position
    except Failure as failure:
        assert [one.field for one in failure.violations] == ["cursor"]
