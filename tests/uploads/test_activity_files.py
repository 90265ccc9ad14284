"""What recordings of real devices say, and that no other bytes do harm."""

from __future__ import annotations

import itertools
import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import fitdecode
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.clock import parse_time
from runtime.errors import Failure, Reason
from services.sessions.schemas import Schemas
from services.uploads.activity_files import summarize
from services.uploads.activity_summary import Kind, Summary, record_of, summary_of
from services.uploads.activity_track import Climb
from tests.uploads.recordings import (
    ACTIVITY,
    ENUM,
    FILE_ID,
    FLOAT64,
    RECORD,
    SESSION,
    SINT32,
    STARTED,
    UINT8,
    UINT16,
    UINT32,
    enveloped,
    fit,
    gpx,
    point,
    repeated,
    sample,
    tcx,
)

EXPECTED = {
    "garmin-fenix-5-run.fit": Summary(
        kind=Kind.FIT,
        sport="running",
        start_time=datetime(2017, 6, 11, 14, 34, 9, tzinfo=UTC),
        duration_seconds=56.887,
        distance_meters=157.56,
        elevation_gain_meters=2,
        avg_heart_rate=90,
        max_heart_rate=112,
        calories=5,
        avg_cadence=83,
        device="garmin fenix5",
    ),
    "garmin-edge-820-bike.fit": Summary(
        kind=Kind.FIT,
        sport="cycling",
        sub_sport="commuting",
        start_time=datetime(2017, 6, 12, 16, 10, 15, tzinfo=UTC),
        duration_seconds=64.524,
        distance_meters=457.12,
        elevation_gain_meters=0,
        avg_heart_rate=116,
        max_heart_rate=121,
        calories=8,
        avg_cadence=68,
        device="garmin edge 820",
    ),
    "indoor-trainer.fit": Summary(
        kind=Kind.FIT,
        sport="cycling",
        start_time=datetime(2011, 11, 2, 12, 54, 19, tzinfo=UTC),
        duration_seconds=2261.85,
        distance_meters=0,
        elevation_gain_meters=4,
        avg_heart_rate=148,
        max_heart_rate=176,
        avg_power_watts=201,
        max_power_watts=331,
        calories=379,
        avg_cadence=82,
        device="garmin edge800",
    ),
    "cerknicko-jezero.gpx": Summary(
        kind=Kind.GPX,
        sport="generic",
        start_time=datetime(2010, 8, 5, 14, 23, 59, tzinfo=UTC),
        duration_seconds=4239,
        distance_meters=4575.02,
        elevation_gain_meters=209.6,
        device="GPSBabel - http://www.gpsbabel.org",
    ),
    "run.tcx": Summary(
        kind=Kind.TCX,
        sport="running",
        start_time=datetime(2012, 12, 26, 21, 29, 53, tzinfo=UTC),
        duration_seconds=1992.78,
        distance_meters=4689.24,
        elevation_gain_meters=118.7,
        avg_heart_rate=160.2,
        max_heart_rate=189,
        calories=379,
        device="Forerunner 410 Software Version 2.20",
    ),
}
SAMPLES = [sample(name) for name in (*EXPECTED, "broken-crc.fit", "weight-scale.fit")]
NOW = datetime(2026, 2, 26, 12, tzinfo=UTC)


def refused(data: bytes) -> str:
    with pytest.raises(Failure) as caught:
        summarize(data)
    failure = caught.value
    assert failure.reason is Reason.FIELD_INVALID
    assert [one.field for one in failure.violations] == ["file"]
    return failure.message


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recording_of_a_device_becomes_this_summary(name: str) -> None:
    assert summarize(sample(name)) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_summary_is_a_good_record_of_its_domain_and_comes_back_from_it(name: str) -> None:
    record = record_of(EXPECTED[name])
    Schemas().check("activity", record)
    assert summary_of(record) == EXPECTED[name]
    assert None not in record.values()


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.endswith(".fit")])
def test_what_a_fit_session_says_is_what_its_records_show(name: str) -> None:
    expected = EXPECTED[name]
    values: dict[str, list[Any]] = {}
    with fitdecode.FitReader(sample(name)) as reader:
        for frame in reader:
            if isinstance(frame, fitdecode.FitDataMessage) and frame.name == "record":
                for field in frame.fields:
                    if field.value is not None:
                        values.setdefault(field.name, []).append(field.value)
    times = values["timestamp"]
    assert times[0] == expected.start_time
    assert (times[-1] - times[0]).total_seconds() == pytest.approx(expected.duration_seconds, rel=0.1)
    assert max(values["heart_rate"]) == expected.max_heart_rate
    # Each value with the time until the next: the watches do not write every second.
    steps = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(times)]
    beats = sum(rate * step for rate, step in zip(values["heart_rate"], steps, strict=False))
    assert beats / sum(steps) == pytest.approx(expected.avg_heart_rate, rel=0.02)
    if "distance" in values:
        assert values["distance"][-1] == pytest.approx(expected.distance_meters, rel=0.1)
    if "power" in values:
        assert max(values["power"]) == expected.max_power_watts
        assert sum(values["power"]) / len(values["power"]) == pytest.approx(expected.avg_power_watts, rel=0.05)


def ellipsoidal(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Meters by the formula of 47 CFR § 73.208, of a plane fitted to the ellipsoid, for less than 475 km."""
    middle = math.radians((one[0] + other[0]) / 2)
    north = 111.13209 - 0.56605 * math.cos(2 * middle) + 0.0012 * math.cos(4 * middle)
    east = 111.41513 * math.cos(middle) - 0.09455 * math.cos(3 * middle) + 0.00012 * math.cos(5 * middle)
    return 1000 * math.hypot(north * (one[0] - other[0]), east * (one[1] - other[1]))


def test_the_distance_of_a_gpx_file_is_that_of_another_formula() -> None:
    root = ElementTree.fromstring(sample("cerknicko-jezero.gpx"))
    meters = 0.0
    for segment in root.iter("{http://www.topografix.com/GPX/1/0}trkseg"):
        points = [(float(one.get("lat", "")), float(one.get("lon", ""))) for one in segment]
        meters += sum(ellipsoidal(one, other) for one, other in itertools.pairwise(points))
    assert EXPECTED["cerknicko-jezero.gpx"].distance_meters == pytest.approx(meters, rel=0.006)


def test_what_tcx_laps_say_is_what_their_points_show() -> None:
    text = sample("run.tcx").decode()
    expected = EXPECTED["run.tcx"]
    rates = [int(one) for one in re.findall(r"<HeartRateBpm>\s*<Value>(\d+)", text)]
    assert sum(rates) / len(rates) == pytest.approx(expected.avg_heart_rate, rel=0.03)
    assert max(rates) == expected.max_heart_rate
    times = [parse_time("time", one) for one in re.findall(r"<Time>([^<]+)", text)]
    assert (max(times) - min(times)).total_seconds() == pytest.approx(expected.duration_seconds, rel=0.01)
    degrees = re.findall(r"<LatitudeDegrees>([^<]+)</LatitudeDegrees>\s*<LongitudeDegrees>([^<]+)", text)
    points = [(float(latitude), float(longitude)) for latitude, longitude in degrees]
    meters = sum(ellipsoidal(one, other) for one, other in itertools.pairwise(points))
    assert meters == pytest.approx(expected.distance_meters, rel=0.03)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"\x00" * 100, "neither FIT"),
        (b"\x89PNG\r\n\x1a\n", "neither FIT"),
        (b"lap,time\n1,2\n", "neither FIT"),
        (b'{"type": "gpx"}', "neither FIT"),
        (b"<html></html>", "neither GPX nor TCX"),
        (b"<gpx", "well-formed"),
        (sample("broken-crc.fit"), "checksum"),
        (sample("weight-scale.fit"), "no activity"),
        (sample("indoor-trainer.fit")[:-1], "too early"),
        (sample("indoor-trainer.fit")[:20_000], "too early"),
        (sample("indoor-trainer.fit") + b"more", "follows its end"),
        (sample("run.tcx")[:-100], "well-formed"),
        (sample("cerknicko-jezero.gpx").decode().encode("utf-16"), "neither FIT"),
        (sample("cerknicko-jezero.gpx").decode().encode("utf-16")[2:], "not in UTF-8"),
        ('<gpx creator="Löwe"/>'.encode("latin-1"), "not in UTF-8"),
        ('<?xml version="1.0" encoding="latin-1"?><gpx creator="Löwe"/>'.encode("latin-1"), "not in UTF-8"),
        (fit(ACTIVITY), "when the activity started"),
        (b"<gpx></gpx>", "no recording"),
        (b'<gpx><rte><rtept lat="1" lon="2"/></rte></gpx>', "no recording"),
        (gpx('<trkpt lat="1" lon="2"/>'), "no recording"),
        (b"<TrainingCenterDatabase><Courses/></TrainingCenterDatabase>", "no recording"),
        (b"<gpx>" + b"<a>" * 10_000, "nested deeper"),
    ],
)
def test_what_is_no_recording_is_refused(data: bytes, why: str) -> None:
    assert why in refused(data)


@pytest.mark.parametrize(
    "data",
    [
        gpx(point(lat="90.1")),
        gpx(point(lon="-180.1")),
        gpx(point(lat="nan")),
        gpx(point(lat="")),
        gpx(point(time="1999-12-31T23:59:59Z")),
        gpx(point(time="9999-12-31T23:59:59Z")),
        gpx(point(time="yesterday")),
        gpx(point(time="2024-02-30T10:00:00Z")),
        fit(ACTIVITY, (RECORD, [(253, UINT32, STARTED), (0, SINT32, 2**30 + 1), (1, SINT32, 0)])),
        fit(ACTIVITY, (RECORD, [(253, UINT32, 2**32 - 2)])),
        fit(ACTIVITY, (SESSION, [(2, FLOAT64, 1e300)])),
        fit(ACTIVITY, (SESSION, [(2, FLOAT64, math.inf)])),
        tcx('<Activity Sport="Running"><Lap StartTime="1066-10-14T09:00:00Z"/></Activity>'),
    ],
)
def test_positions_and_times_that_cannot_be_are_refused(data: bytes) -> None:
    refused(data)


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize(
    "doctype",
    [
        f'<!DOCTYPE gpx [<!ENTITY l0 "lol">{LAUGHS}]>',
        '<!DOCTYPE gpx [<!ENTITY l9 SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE gpx SYSTEM "http://127.0.0.1:9/gpx.dtd">',
        '<!DOCTYPE gpx [<!ENTITY % l9 SYSTEM "http://127.0.0.1:9/l9"> %l9;]>',
        "<!DOCTYPE gpx>",
    ],
)
def test_a_document_type_is_refused_before_anything_in_it_is_followed(doctype: str) -> None:
    assert "document type" in refused(gpx(point(inside="<type>&l9;</type>"), head=doctype))


def test_an_entity_that_nobody_declared_is_refused() -> None:
    assert "well-formed" in refused(gpx(point(inside="<type>&l9;</type>")))


def test_the_start_is_held_against_the_clock_that_was_given() -> None:
    data = gpx(point(time="2026-02-27T11:00:00Z"))
    assert summarize(data, now=lambda: NOW).start_time == NOW + timedelta(hours=23)
    with pytest.raises(Failure):
        summarize(data, now=lambda: NOW - timedelta(hours=2))


def test_pauses_of_a_gpx_track_are_neither_time_nor_way() -> None:
    parts = (
        point("2024-05-01T10:00:00Z"),
        point("2024-05-01T10:01:00Z", lat="46.001"),
        point("2024-05-01T12:00:00Z", "47"),
    )
    data = gpx(f"{parts[0]}{parts[1]}</trkseg><trkseg>{parts[2]}")
    summary = summarize(data)
    assert summary.duration_seconds == 60
    assert summary.distance_meters == pytest.approx(111.195, abs=0.01)


def test_a_rare_point_has_the_weight_of_the_time_since_the_one_before() -> None:
    times = "2024-05-01T10:00:00Z", "2024-05-01T10:00:01Z", "2024-05-01T10:00:10Z", "2024-05-01T11:00:00Z"
    rates = 100, 100, 200, 200  # 1 s, 1 s, 9 s, and an hour without a point counts 30 s
    points = "".join(point(one, inside=f"<hr>{rate}</hr>") for one, rate in zip(times, rates, strict=True))
    assert summarize(gpx(points)).avg_heart_rate == pytest.approx((2 * 100 + 39 * 200) / 41, abs=0.05)


def test_points_in_any_order_never_make_a_negative_duration() -> None:
    summary = summarize(gpx(point("2024-05-01T11:00:00Z") + point("2024-05-01T10:00:00Z")))
    assert summary.duration_seconds == 3600
    assert summary.start_time == datetime(2024, 5, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("said", "sport"),
    [("Ride", "cycling"), ("9", "running"), ("trail running", "trail_running"), ("hiking", "hiking"), ("", "generic")],
)
def test_the_type_of_a_gpx_track_is_its_sport(said: str, sport: str) -> None:
    data = gpx(point()).replace(b"<trk>", f"<trk><type>{said}</type>".encode())
    assert summarize(data).sport == sport


def test_sensors_of_a_gpx_file_are_read_from_the_usual_extensions() -> None:
    def sensors(rate: int, cadence: int, watts: int) -> str:
        garmin = f"<x:TrackPointExtension><x:hr>{rate}</x:hr><x:cad>{cadence}</x:cad></x:TrackPointExtension>"
        return f"<extensions><power>{watts}</power>{garmin}</extensions>"

    said = enumerate([sensors(120, 80, 0), sensors(140, 0, 300), sensors(0, 90, 300)])
    points = "".join(point(f"2024-05-01T10:00:0{n}Z", inside=one) for n, one in said)
    summary = summarize(gpx(points))
    assert (summary.avg_heart_rate, summary.max_heart_rate) == (130, 140)
    assert (summary.avg_power_watts, summary.max_power_watts) == (200, 300)
    assert summary.avg_cadence == 85


@pytest.mark.parametrize(("said", "sport"), [("Biking", "cycling"), ("Running", "running"), ("Other", "generic")])
def test_the_sports_of_tcx_have_the_names_of_fit(said: str, sport: str) -> None:
    lap = '<Lap StartTime="2024-05-01T10:00:00Z"><TotalTimeSeconds>60</TotalTimeSeconds></Lap>'
    assert summarize(tcx(f'<Activity Sport="{said}">{lap}</Activity>')).sport == sport


def test_averages_of_laps_have_the_weight_of_their_time() -> None:
    def lap(seconds: int, rate: int, watts: int) -> str:
        extension = f"<Extensions><a:LX><a:AvgWatts>{watts}</a:AvgWatts></a:LX></Extensions>"
        return (
            f'<Lap StartTime="2024-05-01T10:00:00Z"><TotalTimeSeconds>{seconds}</TotalTimeSeconds>'
            f"<AverageHeartRateBpm><Value>{rate}</Value></AverageHeartRateBpm>{extension}</Lap>"
        )

    summary = summarize(tcx(f'<Activity Sport="Biking">{lap(300, 100, 150)}{lap(100, 140, 350)}</Activity>'))
    assert (summary.duration_seconds, summary.avg_heart_rate, summary.avg_power_watts) == (400, 110, 200)


def test_a_history_of_activities_is_refused_and_a_triathlon_is_not() -> None:
    laps = "".join(
        f'<Activity Sport="{one}"><Lap StartTime="2024-05-01T10:00:00Z"/></Activity>' for one in ("Biking", "Running")
    )
    assert "several" in refused(tcx(laps))
    assert summarize(tcx(f"<MultiSportSession>{laps}</MultiSportSession>")).sport == "multisport"


def test_a_fit_file_without_a_session_is_added_up_from_its_records() -> None:
    records = [
        (
            RECORD,
            [(253, UINT32, STARTED + n), (0, SINT32, n * 10_000), (1, SINT32, 0), (3, UINT8, 100 + n), (7, UINT16, n)],
        )
        for n in range(101)
    ]
    summary = summarize(fit(ACTIVITY, *records))
    assert summary.start_time == datetime(2021, 9, 8, 1, 46, 40, tzinfo=UTC)
    assert summary.sport == "generic"
    assert summary.duration_seconds == 100
    assert summary.distance_meters == pytest.approx(100 * 10_000 * 180 / 2**31 * 111_195, rel=1e-5)
    assert (summary.avg_heart_rate, summary.max_heart_rate) == (150, 200)
    assert (summary.avg_power_watts, summary.max_power_watts) == (50, 100)
    assert summary.device == "garmin"


def test_sessions_of_several_sports_are_one_activity() -> None:
    def session(sport: int, start: int, seconds: int, meters: int, rate: int) -> tuple[int, list[Any]]:
        fields = [
            (5, ENUM, sport),
            (2, UINT32, STARTED + start),
            (8, UINT32, 1000 * seconds),
            (9, UINT32, 100 * meters),
        ]
        return SESSION, [*fields, (16, UINT8, rate), (17, UINT8, rate + 20)]

    summary = summarize(fit(ACTIVITY, session(2, 100, 300, 3000, 140), session(5, 0, 100, 200, 120)))
    assert summary.sport == "multisport"
    assert summary.start_time == datetime(2021, 9, 8, 1, 46, 40, tzinfo=UTC)
    assert (summary.duration_seconds, summary.distance_meters) == (400, 3200)
    assert (summary.avg_heart_rate, summary.max_heart_rate) == (135, 160)


def test_a_glitch_of_a_sensor_is_left_out_and_the_rest_is_kept() -> None:
    session = (SESSION, [(2, UINT32, STARTED), (8, UINT32, 60_000), (20, UINT16, 60_000), (21, UINT16, 65_000)])
    summary = summarize(fit(ACTIVITY, session))
    assert (summary.avg_power_watts, summary.max_power_watts, summary.duration_seconds) == (None, None, 60)


def test_texts_are_one_clean_line() -> None:
    root = '<gpx creator="A\tB&#10;\ufeffC\u202e' + "x" * 300 + '">'
    device = summarize(gpx(point(), root=root)).device
    assert device is not None
    assert device.startswith("A B C")
    assert len(device) == 200
    assert device.isprintable()


def test_noise_below_the_threshold_climbs_nothing() -> None:
    climb = Climb()
    for n in range(1000):
        climb.add(100 + (n % 2) * 2.5)
    assert climb.gain == 0


def test_a_slow_climb_counts_whole() -> None:
    climb = Climb()
    for n in range(1001):
        climb.add(100 + n / 10)
    assert climb.gain == pytest.approx(100, abs=3)


def test_many_sessions_of_a_file_are_read_in_one_go() -> None:
    summary = summarize(repeated("garmin-edge-820-bike.fit", 100_000))
    assert summary.distance_meters == pytest.approx(24 * 457.12, rel=0.1)
    assert summary.sport == "cycling"


def harmless(data: bytes) -> None:
    """Reads `data`: a summary that is a good record, or a refusal that names the file."""
    try:
        summary = summarize(data)
    except Failure as failure:
        assert failure.reason is Reason.FIELD_INVALID
        assert [one.field for one in failure.violations] == ["file"]
        return
    record = record_of(summary)
    SCHEMAS.check("activity", record)
    for name in ("duration_seconds", "distance_meters", "elevation_gain_meters"):
        assert record.get(name, 0) >= 0
    assert summary_of(record) == summary


SCHEMAS = Schemas()
# The first bytes of the big samples are as good as all of them, and quicker.
SEEDS = [data[:6000] for data in SAMPLES] + [sample("garmin-fenix-5-run.fit"), sample("weight-scale.fit")]


@given(st.binary(max_size=3000))
@settings(max_examples=300)
def test_random_bytes_do_no_harm(data: bytes) -> None:
    harmless(data)
    harmless(b"\x0e\x10\x64\x00" + len(data).to_bytes(4, "little") + b".FIT\0\0" + data)
    harmless(b"<gpx>" + data)


@given(st.sampled_from(SEEDS), st.data())
@settings(max_examples=400)
def test_changed_recordings_do_no_harm(seed: bytes, draw: st.DataObject) -> None:
    data = bytearray(seed)
    for _ in range(draw.draw(st.integers(1, 8))):
        at = draw.draw(st.integers(0, len(data) - 1))
        data[at : at + draw.draw(st.integers(0, 3))] = draw.draw(st.binary(max_size=4))
    harmless(bytes(data))
    if data[8:12] == b".FIT":  # again with a good checksum and length, or nothing but those would ever be tested
        harmless(resealed(bytes(data)))


@given(st.sampled_from(SEEDS), st.integers(0, 6000))
@settings(max_examples=150)
def test_cut_recordings_do_no_harm(seed: bytes, length: int) -> None:
    harmless(seed[:length])
    harmless(resealed(seed[:length]))


def resealed(data: bytes) -> bytes:
    return enveloped(data[14:-2])


NUMBERS = st.one_of(st.integers(), st.floats()).map(str) | st.sampled_from(["", "NaN", "-0", "1e308", "٣", "1_0"])
TIMES = st.datetimes().map(lambda time: f"{time.isoformat()}Z") | st.just("2024-05-01T10:00:00Z") | st.text(max_size=20)


@given(st.lists(st.tuples(TIMES, NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=5))
@settings(max_examples=300)
def test_strange_numbers_and_times_in_gpx_do_no_harm(points: list[tuple[str, str, str, str, str]]) -> None:
    made = [
        point(
            time, lat, lon, f"<ele>{ele}</ele><extensions><hr>{hr}</hr><cad>{hr}</cad><power>{hr}</power></extensions>"
        )
        for time, lat, lon, ele, hr in points
    ]
    harmless(gpx("".join(made)))


FIELDS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 255), st.just(UINT32), st.integers(0, 2**32 - 1)),
        st.tuples(st.integers(0, 255), st.just(SINT32), st.integers(-(2**31), 2**31 - 1)),
        st.tuples(st.integers(0, 255), st.just(FLOAT64), st.floats()),
        st.tuples(st.sampled_from([2, 253]), st.just(UINT32), st.just(STARTED)),
    ),
    max_size=6,
)


@given(st.lists(st.tuples(st.sampled_from([FILE_ID, SESSION, RECORD, 132, 206, 207]), FIELDS), max_size=8))
@settings(max_examples=400)
def test_strange_fields_in_fit_do_no_harm(messages: list[tuple[int, list[Any]]]) -> None:
    harmless(fit(ACTIVITY, *messages))
