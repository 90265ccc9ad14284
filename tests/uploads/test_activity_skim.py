"""The short way through a FIT file says what the long one does, and is only taken where it does."""

from __future__ import annotations

import pytest
from fitdecode.utils import compute_crc

from runtime.errors import Failure
from services.uploads import activity_fit
from services.uploads.activity_fit import read_fit
from services.uploads.activity_skim import checksum, skim
from services.uploads.activity_summary import Summary
from tests.uploads.recordings import (
    ACTIVITY,
    ENUM,
    RECORD,
    SAMPLES,
    SESSION,
    STARTED,
    UINT8,
    UINT16,
    UINT32,
    fit,
    sample,
)

GOOD = ("garmin-fenix-5-run.fit", "garmin-edge-820-bike.fit", "indoor-trainer.fit")
WHOLE_SESSION = [
    *((2, UINT32, STARTED), (5, ENUM, 1), (8, UINT32, 60_000), (9, UINT32, 20_000), (16, UINT8, 140), (17, UINT8, 150)),
]


def record(second: int, heart_rate: int) -> tuple[int, list[tuple[int, tuple[int, str], int]]]:
    return RECORD, [(253, UINT32, STARTED + second), (3, UINT8, heart_rate)]


def the_long_way(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Summary:
    with monkeypatch.context() as patch:
        patch.setattr(activity_fit, "skim", lambda _: None)
        return read_fit(data)


@pytest.mark.parametrize("name", GOOD)
def test_both_ways_come_to_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sample(name)
    skimmed = skim(data)
    assert skimmed is not None
    assert len(skimmed.data) < len(data) / 2
    assert read_fit(data) == the_long_way(data, monkeypatch)


def test_a_session_that_says_all_is_enough_and_one_that_does_not_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record(second, 100 + second) for second in range(5)]
    whole = fit(ACTIVITY, *records, (SESSION, WHOLE_SESSION))
    part = fit(ACTIVITY, *records, (SESSION, [field for field in WHOLE_SESSION if field[0] not in (16, 17)]))
    bare = fit(ACTIVITY, *records)
    assert read_fit(whole).max_heart_rate == 150
    assert read_fit(part).max_heart_rate == 104
    assert read_fit(bare).max_heart_rate == 104
    for data in (whole, part, bare):
        assert read_fit(data) == the_long_way(data, monkeypatch)


@pytest.mark.parametrize("name", GOOD)
def test_whatever_is_damaged_goes_the_long_way_and_is_refused_as_before(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sample(name)
    places = {0, 1, 4, 8, 12, 13, 14, 15, 40, len(data) // 2, len(data) - 3, len(data) - 1}
    broken = [data[:place] + bytes((data[place] ^ 0x15,)) + data[place + 1 :] for place in sorted(places)]
    for one in [*broken, data[:-1], data[:-40], data + b"\0", data + data, data[:14]]:
        outcomes = []
        for read in (read_fit, lambda given: the_long_way(given, monkeypatch)):
            try:
                outcomes.append(read(one))
            except Failure as failure:
                outcomes.append(failure.message)
        assert outcomes[0] == outcomes[1]


def test_what_is_no_fit_at_all_is_no_trouble() -> None:
    for data in (b"", b"\x0e", b"\x0e" * 14, bytes(200), b"\x0c" + bytes(3) + b"\xff" * 4 + b".FIT" + bytes(100)):
        assert skim(data) is None


def test_the_checksum_is_that_of_the_format() -> None:
    for data in (b"a", b"123456789", bytes(range(256)) * 7, sample("weight-scale.fit")[:-2]):
        assert checksum(data) == compute_crc(data)
    assert checksum(b"123456789") == 0xBB3D
    assert all(checksum(file.read_bytes()) == 0 for file in SAMPLES.glob("*.fit") if "broken" not in file.name)


def test_a_definition_with_nothing_in_it_ends_the_short_way() -> None:
    assert skim(fit(ACTIVITY, (RECORD, []), (SESSION, [(2, UINT16, 1)]))) is not None
