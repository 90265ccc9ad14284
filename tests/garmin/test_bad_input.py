"""What bad input comes to at every door of the Garmin connector: one sentence that names what is wrong."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.conftest import Edge
from tests.factories import Phone
from tests.garmin.linked import linked
from tests.garmin.standin import StandIn
from tests.journeys.test_bad_input import INNER_WORDS, NO_OBJECT, NOT_A_BOOL, NOT_A_STRING, NOT_WHOLE, POLICIES, texts

NAMES = [name for name, one in POLICIES.items() if one.service == "satchel.garmin.v1.GarminService"]
GOOD: dict[str, dict[str, Any]] = {
    "LinkAccount": {"username": "ada@garmin.example", "password": "x"},
    "VerifyMfa": {"mfa_code": "123456"},
    "SyncActivities": {},
    "SyncHealth": {},
    "SyncWorkouts": {},
    "UpdateSchedule": {"interval_hours": 6},
}
SINCE = (*NOT_A_STRING, *texts("yesterday", "2026-13-01", "2999-01-01", "2026-01-01T00:00:00Z", "\x00", "x" * 2000))
LONG = texts("x" * 5000, "a\x00b")
# What a field refuses, as JSON text.
BAD: dict[tuple[str, str], tuple[str, ...]] = {
    ("LinkAccount", "username"): (*NOT_A_STRING, *LONG, '""', '" "', "null"),
    ("LinkAccount", "password"): (*NOT_A_STRING, *LONG, '""', "null"),
    ("LinkAccount", "mfa_code"): (*NOT_A_STRING, *LONG),
    ("VerifyMfa", "mfa_code"): (*NOT_A_STRING, *LONG, '""', '" "', "null"),
    ("SyncActivities", "since"): SINCE,
    ("SyncActivities", "force"): NOT_A_BOOL,
    ("SyncHealth", "since"): SINCE,
    ("SyncWorkouts", "force"): NOT_A_BOOL,
    ("UpdateSchedule", "interval_hours"): (*NOT_WHOLE, "-1", "169"),
}
PAGES = {
    "page_size": ("-1", "1001", "x", "1.5", "99999999999", "%00"),
    "page_token": ("!", "garbage", "%00", "x" * 2000, base64.urlsafe_b64encode(b"no time").decode()),
}


def as_json(body: dict[str, Any]) -> str:
    """With values that are JSON text already."""
    return "{" + ", ".join(f'"{name}": {value}' for name, value in body.items()) + "}"


def test_every_door_with_a_body_has_its_cases() -> None:
    bodies = {name for name in NAMES if POLICIES[name].http[0].verb in ("POST", "PUT")}
    assert bodies == GOOD.keys()
    assert {name for name, _ in BAD} == bodies


def refused(answer: Any, field: str = "") -> None:
    assert answer.status_code == 400, f"{answer.status_code}: {answer.text[:300]}"
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json().keys() == {"detail"}
    assert field in answer.json()["detail"]
    assert not INNER_WORDS.search(answer.text), answer.text[:300]


@pytest.mark.parametrize(("name", "field"), BAD)
async def test_a_bad_field_is_refused_and_nothing_begins(edge: Edge, standin: StandIn, name: str, field: str) -> None:
    ada = await linked(edge, standin)
    before = await ada.phone.call("GET", "/api/garmin/account")
    asked = len(standin.requests)
    (rule,) = POLICIES[name].http
    for bad in BAD[name, field]:
        good = {key: texts(value)[0] for key, value in GOOD[name].items()}
        answer = await ada.phone.call(
            rule.verb,
            rule.path,
            content=as_json({**good, field: bad}).encode(),
            headers={"content-type": "application/json"},
        )
        # What is no JSON of the type is named by the message it stands in, as the edge reads it.
        refused(answer, "" if bad[0] != '"' or field == "force" or name == "UpdateSchedule" else field)
    assert len(standin.requests) == asked
    assert (await ada.phone.call("GET", "/api/garmin/account")).json() == before.json()
    assert (await ada.status())["status"] == "idle"


@pytest.mark.parametrize("name", GOOD)
async def test_what_is_no_object_is_refused(edge: Edge, name: str) -> None:
    phone = await Phone.as_guest(edge.http)
    (rule,) = POLICIES[name].http
    for kind, content in NO_OBJECT.items():
        if kind == "null":
            continue
        answer = await phone.call(rule.verb, rule.path, content=content, headers={"content-type": "application/json"})
        refused(answer)


async def test_bad_pages_are_refused(edge: Edge) -> None:
    phone = await Phone.as_guest(edge.http)
    for name, values in PAGES.items():
        for bad in values:
            refused(await phone.call("GET", f"/api/v1/garmin/syncs?{name}={bad}"))


async def test_doors_without_a_body_take_no_parameters(edge: Edge) -> None:
    phone = await Phone.as_guest(edge.http)
    for name in NAMES:
        (rule,) = POLICIES[name].http
        if rule.verb in ("GET", "DELETE"):
            refused(await phone.call(rule.verb, f"{rule.path}?unknown=1"))
