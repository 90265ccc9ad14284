"""The pure rules of the session contracts: points, streaks, pages, schemas, conversions."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from satchel.sessions.v1 import device_sessions_pb2, puzzle_sessions_pb2

from runtime import paging
from runtime.clock import EARLIEST, format_time, from_timestamp, parse_time, to_timestamp
from runtime.documents import items, struct_from_json, struct_to_json
from runtime.errors import Failure, Reason, camel
from services.sessions import device_sessions_convert, puzzles_convert
from services.sessions.exercises_domain import Catalogue, points
from services.sessions.records_domain import Key, Record
from services.sessions.schemas import MAX_DEPTH, Schemas, encode
from services.sessions.stats_domain import Derived, combine, streak
from tests.factories import device_session, puzzle_session

TODAY = date(2026, 2, 26)
NOW = datetime(2026, 2, 26, 12, tzinfo=UTC)
times = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis wants naive bounds
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("exercise", "duration", "repetitions", "worth"),
    [("bird-dog", 60, 10, 52), ("superman", 45, 7, 44), ("bridge", 0, 0, 1), ("y-raise", 100, 0, 16), ("new", 1, 0, 1)],
)
def test_points_of_the_published_vectors(exercise: str, duration: int, repetitions: int, worth: int) -> None:
    met = Catalogue().met_points(exercise)
    assert points(met, duration=duration, repetitions=repetitions, completed=True) == worth
    assert points(met, duration=duration, repetitions=repetitions, completed=False) == 0


@pytest.mark.parametrize(
    ("days_ago", "length"),
    [
        ([], 0),
        ([0], 1),
        ([1], 1),
        ([2], 0),
        ([0, 1, 2], 3),
        ([1, 2, 3], 3),
        ([0, 2, 3], 1),
        ([-1, 0, 1], 2),  # a phone ahead of UTC has played tomorrow
    ],
)
def test_a_streak_ends_today_or_yesterday(days_ago: list[int], length: int) -> None:
    assert streak([TODAY - timedelta(days=ago) for ago in days_ago], TODAY) == length


def test_the_apps_word_stands_beside_the_servers_sums() -> None:
    sums = {"total_sessions": 3, "total_duration_seconds": 60, "total_distance_meters": 0, "total_calories": 0}
    derived = Derived(totals={**sums, "total_xp": 5}, days=[TODAY], update_time=NOW)
    stats = combine({"total_xp": 0}, NOW + timedelta(hours=1), derived, NOW)
    assert stats.totals == {**sums, "total_xp": 0, "current_streak_days": 1}
    assert stats.source["total_xp"] == "app"
    assert set(stats.source.values()) == {"app", "server"}
    assert stats.update_time == NOW + timedelta(hours=1)


@given(times, st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=64))
def test_a_page_token_is_read_as_it_was_written(time: datetime, id: str) -> None:
    assert paging.decode_token(paging.encode_token(time, id)) == (time, id)


@given(st.text(max_size=60))
def test_a_made_up_page_token_is_refused_or_harmless(token: str) -> None:
    try:
        decoded = paging.decode_token(token)
    except Failure as failure:
        assert failure.violations[0].field == "page_token"
    else:
        assert decoded is None or decoded[0].year > 0


@given(times)
def test_times_are_read_as_they_were_written(time: datetime) -> None:
    assert parse_time("time", format_time(time)) == time
    assert from_timestamp("time", to_timestamp(time)) == time


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2026-02-26T10:00:00Z", 10),
        ("2026-02-26T10:00:00", 10),
        ("2026-02-26t10:00:00.123z", 10),
        ("2026-02-26T12:00:00+02:00", 10),
        ("2026-02-26 10:00:00Z", 10),
    ],
)
def test_iso_times_of_every_phone_are_read_as_utc(text: str, hour: int) -> None:
    time = parse_time("time", text)
    assert (time.hour, time.utcoffset()) == (hour, timedelta(0))


@pytest.mark.parametrize(
    "text", ["", "2026-02-26", "now", "2026-13-01T00:00:00Z", "1772100000", "2026-02-26T25:00:00Z", "9" * 50]
)
def test_what_is_no_time_is_refused_by_name(text: str) -> None:
    with pytest.raises(Failure) as refused:
        parse_time("started_at", text)
    assert refused.value.violations[0].field == "started_at"


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values, max_size=5))
def test_open_objects_survive_the_way_through_a_message(data: dict[str, Any]) -> None:
    assert struct_to_json(struct_from_json(data)) == data


@given(json_values)
def test_a_stored_object_is_what_was_sent_or_is_refused(value: Any) -> None:
    try:
        raw = encode({"field": value})
    except Failure as failure:
        assert failure.violations[0].field == "field"
    else:
        assert orjson.loads(raw) == {"field": value}
        assert "\\u0000" not in raw.replace("\\\\", "")


@pytest.mark.parametrize(("depth", "stored"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False), (900, False)])
def test_nesting_has_a_limit(depth: int, stored: bool) -> None:
    value: Any = 1
    for _ in range(depth - 1):
        value = [value]
    if stored:
        encode({"field": value})
    else:
        with pytest.raises(Failure, match="nested deeper"):
            encode({"field": value})


def test_a_record_has_a_largest_size_and_names_what_fills_it() -> None:
    with pytest.raises(Failure) as refused:
        encode({"small": 1, "device_metrics": {"note": "x" * 300_000}})
    assert refused.value.violations[0].field == "device_metrics"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", Reason.MALFORMED_REQUEST),
        (b"[1", Reason.MALFORMED_REQUEST),
        (b"[]", Reason.MALFORMED_REQUEST),
        (b"null", Reason.MALFORMED_REQUEST),
        (b'{"sessions": NaN}', Reason.MALFORMED_REQUEST),
        (b'{"sessions": "\xff"}', Reason.MALFORMED_REQUEST),
        (b"[" * 100_000, Reason.MALFORMED_REQUEST),
        (b"{}", Reason.FIELD_MISSING),
        (b'{"sessions": null}', Reason.FIELD_MISSING),
        (b'{"sessions": []}', Reason.FIELD_MISSING),
        (b'{"sessions": {}}', Reason.FIELD_INVALID),
        (b'{"sessions": [%s]}' % b",".join([b"1"] * 1001), Reason.FIELD_INVALID),
    ],
)
def test_a_document_without_a_list_of_items_is_refused(document: bytes, reason: Reason) -> None:
    with pytest.raises(Failure) as refused:
        items(document, "sessions")
    assert refused.value.reason is reason


def test_every_device_type_has_its_schema() -> None:
    schemas = Schemas()
    for device in ("bike", "rower", "treadmill"):
        session = device_session(device_type=device, device_metrics={"avg_power_watts": "many"})
        del session["client_session_id"]
        if device == "treadmill":
            session["device_metrics"] = {"avg_incline_pct": "steep"}
        with pytest.raises(Failure, match=r"device_metrics\.avg_"):
            schemas.check(device, session)
        schemas.check("session", session)


def test_a_puzzle_survives_the_way_through_a_message() -> None:
    sent = puzzles_convert.session_from_json(puzzle_session())
    record = Record(
        key=Key("puzzle", sent.id),
        version=1,
        position=1,
        deleted=False,
        data=sent.data,
        happen_time=NOW,
        update_time=NOW,
    )
    assert puzzles_convert.session_from_pb(puzzles_convert.session_to_pb(record)) == sent


def test_a_recording_is_the_same_from_json_and_from_a_message() -> None:
    session = device_session(samples=[{"t": 0, "hr": 120}, {"t": 1, "hr": None}])
    open_fields = ("started_at", "ended_at", "device_metrics", "samples")
    message = device_sessions_pb2.DeviceSession(**{k: v for k, v in session.items() if k not in open_fields})
    message.started_at.FromJsonString(session["started_at"])
    message.ended_at.FromJsonString(session["ended_at"])
    message.device_metrics.update(session["device_metrics"])
    message.samples.extend(session["samples"])
    assert device_sessions_convert.recording_from_pb(message) == device_sessions_convert.recording_from_json(session)


def test_a_message_without_a_field_is_an_item_without_it() -> None:
    sent = puzzles_convert.session_from_pb(puzzle_sessions_pb2.PuzzleSession(id="a"))
    assert "duration" not in sent.data
    assert "timestamp" not in sent.data
    assert "difficulty" not in sent.data


def test_field_paths_turn_into_camel_case_part_by_part() -> None:
    assert camel("repetition_count") == "repetitionCount"
    assert camel("sessions[3].start_time") == "sessions[3].startTime"
    assert EARLIEST.year == 2000
