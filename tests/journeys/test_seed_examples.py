"""Every example of the published APIs, sent as it is printed there, through the real edge."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.conftest import Edge
from tests.factories import PASSWORD, Phone, device_session, exercise_session, puzzle_session

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def is_time(text: str) -> bool:
    return TIME.fullmatch(text) is not None


class TestSeed004:
    async def test_sign_up_answers_201_with_the_user_and_both_tokens(self, edge: Edge) -> None:
        email = f"{uuid4().hex}@example.com"
        answer = await edge.http.post("/v1/auth/signup", json={"email": email, "password": "securepassword123"})
        assert answer.status_code == 201
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        assert body.keys() == {"user", "access_token", "refresh_token"}
        assert body["user"].keys() >= {"id", "email", "tier", "created_at"}
        assert (body["user"]["email"], body["user"]["tier"]) == (email, "free")
        assert is_time(body["user"]["created_at"])
        assert body["access_token"].count(".") == 2

    async def test_sign_in_answers_200_with_the_same_shape(self, edge: Edge, phone: Phone) -> None:
        answer = await edge.http.post("/v1/auth/signin", json={"email": phone.email, "password": PASSWORD})
        assert answer.status_code == 200
        body = answer.json()
        assert body.keys() == {"user", "access_token", "refresh_token"}
        assert body["user"]["id"] == phone.user_id

    async def test_me_shows_the_account_and_its_subscription(self, phone: Phone) -> None:
        answer = await phone.call("GET", "/v1/auth/me")
        assert answer.status_code == 200
        body = answer.json()
        assert is_time(body.pop("created_at"))
        shown = {
            "id": phone.user_id,
            "email": phone.email,
            "tier": "free",
            "subscription_status": "inactive",
            "subscription_expires_at": None,
            "email_verified": False,
        }
        assert shown.items() <= body.items()

    async def test_uploaded_sessions_are_synced_and_come_back_as_they_were_sent(self, phone: Phone) -> None:
        session = {**puzzle_session(), "id": "uuid-123"}
        answer = await phone.call("POST", "/v1/sessions", json={"sessions": [session]})
        assert answer.status_code == 200
        assert answer.json() == {"synced": 1, "conflicts": 0, "rejected": []}
        answer = await phone.call("GET", "/v1/sessions?since=2025-11-01T00:00:00Z")
        assert answer.status_code == 200
        assert answer.json() == {"sessions": [session], "total": 1, "next_page_token": ""}

    async def test_the_subscription_of_a_new_account_is_free_and_inactive(self, phone: Phone) -> None:
        answer = await phone.call("GET", "/v1/subscription/status")
        assert answer.status_code == 200
        assert answer.json() == {
            "tier": "free",
            "status": "inactive",
            "current_period_end": None,
            "cancel_at_period_end": False,
        }

    async def test_wrong_password_and_unknown_account_look_alike(self, edge: Edge, phone: Phone) -> None:
        for email in (phone.email, "nobody@example.com"):
            answer = await edge.http.post("/v1/auth/signin", json={"email": email, "password": "not the password"})
            assert answer.status_code == 401
            error = answer.json()["error"]
            assert error["code"] == "INVALID_CREDENTIALS"
            assert error["message"] == "Email or password is incorrect."
            assert error["details"] == []

    async def test_a_registered_email_is_a_conflict_in_any_spelling(self, edge: Edge, phone: Phone) -> None:
        email = f"  {phone.email.upper()} "
        answer = await edge.http.post("/v1/auth/signup", json={"email": email, "password": PASSWORD})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "CONFLICT")

    async def test_without_a_token_every_row_is_unauthorized(self, edge: Edge) -> None:
        for verb, path in (
            ("GET", "/v1/auth/me"),
            ("GET", "/v1/sessions"),
            ("POST", "/v1/sessions"),
            ("GET", "/v1/subscription/status"),
            ("POST", "/v1/auth/signout"),
        ):
            answer = await edge.http.request(verb, path, json={} if verb == "POST" else None)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "UNAUTHORIZED"), path

    async def test_a_body_that_is_no_json_is_an_invalid_request(self, edge: Edge, phone: Phone) -> None:
        for path in ("/v1/auth/signup", "/v1/sessions"):
            answer = await phone.call("POST", path, content=b'{"email": ')
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST"), path

    async def test_what_is_not_there_is_not_found(self, phone: Phone) -> None:
        answer = await phone.call("GET", "/v1/nothing")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")


class TestSeed002:
    async def test_a_created_session_answers_201_in_camel_case_with_points(self, phone: Phone) -> None:
        answer = await phone.call("POST", "/sessions", json=exercise_session())
        assert answer.status_code == 201
        body = answer.json()
        assert UUID(body.pop("id"))
        assert body == {**exercise_session(), "pointsAwarded": 52}

    @pytest.mark.parametrize(
        ("exercise", "duration", "repetitions", "points"),
        [
            ("bird-dog", 60, 10, 52),
            ("superman", 45, 7, 44),
            ("bird-dog", 0, 0, 1),
            ("t-raise", 30, 5, 20),
            ("made-up", 60, 10, 52),
        ],
    )
    async def test_points_are_floored_whole_and_at_least_one(
        self, phone: Phone, exercise: str, duration: int, repetitions: int, points: int
    ) -> None:
        session = exercise_session(exerciseId=exercise, duration=duration, repetitionCount=repetitions)
        answer = await phone.call("POST", "/sessions", json=session)
        assert answer.json()["pointsAwarded"] == points

    async def test_an_unfinished_session_is_worth_nothing(self, phone: Phone) -> None:
        answer = await phone.call("POST", "/sessions", json=exercise_session(isCompleted=False))
        assert answer.json()["pointsAwarded"] == 0

    async def test_a_session_is_read_back_by_its_id(self, phone: Phone) -> None:
        created = (await phone.call("POST", "/sessions", json=exercise_session())).json()
        answer = await phone.call("GET", f"/sessions/{created['id']}")
        assert answer.status_code == 200
        assert answer.json() == created

    async def test_sessions_are_listed_by_exercise_newest_first(self, phone: Phone) -> None:
        for hour in (8, 10, 9):
            await phone.call("POST", "/sessions", json=exercise_session(startTime=f"2026-02-26T{hour:02}:00:00Z"))
        await phone.call("POST", "/sessions", json=exercise_session(exerciseId="bridge"))
        answer = await phone.call("GET", "/sessions?exerciseId=bird-dog")
        assert answer.status_code == 200
        body = answer.json()
        assert [one["startTime"][11:13] for one in body["sessions"]] == ["10", "09", "08"]
        assert body["sessions"][0].keys() == {*exercise_session(), "id", "pointsAwarded"}

    async def test_the_error_schema_is_the_one_that_was_agreed(self, edge: Edge) -> None:
        answer = await edge.http.post("/sessions", json=exercise_session())
        assert answer.status_code == 401
        error = answer.json()["error"]
        assert error.keys() == {"code", "message", "details", "requestId", "timestamp"}
        assert error["code"] == "AUTH_UNAUTHORIZED"
        assert error["details"] == [{"field": "Authorization", "reason": "MISSING_BEARER_TOKEN"}]
        assert error["requestId"] == f"req_{answer.headers['x-request-id']}"
        written = datetime.strptime(error["timestamp"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)

    @pytest.mark.parametrize(
        ("field", "value", "reason"),
        [
            ("duration", -1, "OUT_OF_RANGE"),
            ("repetitionCount", -1, "OUT_OF_RANGE"),
            ("exerciseId", " ", "INVALID_FORMAT"),
            ("exerciseId", "", "REQUIRED"),
            ("startTime", "yesterday", "INVALID_FORMAT"),
            ("startTime", "1970-01-01T00:00:00Z", "OUT_OF_RANGE"),
            ("startTime", "2100-01-01T00:00:00Z", "OUT_OF_RANGE"),
            ("id", "not-a-uuid", "INVALID_FORMAT"),
            ("duration", 604801, "OUT_OF_RANGE"),
            ("exerciseId", "x" * 101, "TOO_LONG"),
        ],
    )
    async def test_a_bad_field_is_named_in_camel_case(self, phone: Phone, field: str, value: Any, reason: str) -> None:
        answer = await phone.call("POST", "/sessions", json=exercise_session(**{field: value}))
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "VALIDATION_FAILED"
        assert error["details"] == [{"field": field, "reason": reason}]
        assert field in error["message"]
        assert (await phone.call("GET", "/sessions")).json()["sessions"] == []

    @pytest.mark.parametrize("field", ["exerciseId", "startTime", "duration", "repetitionCount", "isCompleted"])
    async def test_a_missing_field_is_named_in_camel_case(self, phone: Phone, field: str) -> None:
        session = exercise_session()
        del session[field]
        answer = await phone.call("POST", "/sessions", json=session)
        assert answer.status_code == 400
        assert answer.json()["error"]["details"] == [{"field": field, "reason": "REQUIRED"}]

    async def test_somebody_elses_session_is_forbidden(self, edge: Edge, phone: Phone) -> None:
        created = (await phone.call("POST", "/sessions", json=exercise_session())).json()
        stranger = await edge.phone()
        answer = await stranger.call("GET", f"/sessions/{created['id']}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "AUTH_FORBIDDEN")
        assert (await stranger.call("GET", "/sessions")).json()["sessions"] == []

    async def test_a_session_that_nobody_has_is_not_found(self, phone: Phone) -> None:
        answer = await phone.call("GET", f"/sessions/{uuid4()}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "SESSION_NOT_FOUND")

    async def test_a_repeat_with_its_key_gets_the_first_answer(self, phone: Phone) -> None:
        headers = {"idempotency-key": str(uuid4())}
        first = await phone.call("POST", "/sessions", json=exercise_session(), headers=headers)
        again = await phone.call("POST", "/sessions", json=exercise_session(), headers=headers)
        assert (again.status_code, again.json()) == (201, first.json())
        assert len((await phone.call("GET", "/sessions")).json()["sessions"]) == 1

    async def test_a_key_that_was_used_for_other_content_is_a_conflict(self, phone: Phone) -> None:
        headers = {"x-idempotency-key": str(uuid4())}
        await phone.call("POST", "/sessions", json=exercise_session(), headers=headers)
        answer = await phone.call("POST", "/sessions", json=exercise_session(duration=61), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "IDEMPOTENCY_CONFLICT")


class TestSeed000:
    @pytest.mark.parametrize(
        "path", ["/sessions/batch_upload", "/v1/sessions/batch_upload", "/api/v1/sessions/batch_upload"]
    )
    async def test_a_batch_answers_item_by_item_on_every_path(self, phone: Phone, path: str) -> None:
        session = device_session()
        answer = await phone.call("POST", path, json={"sessions": [session]})
        assert answer.status_code == 200
        body = answer.json()
        assert is_time(body.pop("server_time"))
        id = session["client_session_id"]
        assert body == {
            "results": [{"client_session_id": id, "status": "created", "session_id": id}],
            "created": 1,
            "duplicates": 0,
            "failed": 0,
        }

    async def test_a_session_may_be_named_by_its_uuid_and_have_any_device(self, phone: Phone) -> None:
        session = device_session(device_type="elliptical", device_metrics={"stride_cm": [1, {"a": None}]})
        session["client_session_uuid"] = session.pop("client_session_id")
        answer = await phone.call("POST", "/sessions/batch_upload", json={"sessions": [session]})
        assert answer.json()["created"] == 1

    async def test_a_duplicate_is_a_success_and_overwrites_nothing(self, phone: Phone) -> None:
        session = device_session(xp_earned=50)
        await phone.call("POST", "/sessions/batch_upload", json={"sessions": [session]})
        other = {**session, "xp_earned": 9999}
        answer = await phone.call("POST", "/sessions/batch_upload", json={"sessions": [other, other]})
        assert [one["status"] for one in answer.json()["results"]] == ["duplicate", "duplicate"]
        assert (await phone.call("GET", "/users/me/stats")).json()["total_xp"] == 50

    async def test_one_bad_item_never_sinks_the_rest(self, phone: Phone) -> None:
        bad: list[Any] = [
            device_session(total_duration_seconds="an hour"),
            "not even an object",
            device_session(client_session_id="not-a-uuid"),
            device_session(started_at="2100-01-01T00:00:00Z"),
            device_session(ended_at="2026-02-26T09:00:00Z"),
            device_session(device_metrics={"avg_power_watts": -1}),
            device_session(device_metrics={"note": "cut in the middle of an emoji \ud83d"}),
        ]
        good = [device_session(), device_session(device_type="rower", device_metrics={})]
        content = json.dumps({"sessions": [good[0], *bad, good[1]]})
        answer = await phone.call("POST", "/sessions/batch_upload", content=content)
        assert answer.status_code == 200
        body = answer.json()
        assert (body["created"], body["failed"]) == (2, len(bad))
        assert [one["status"] for one in body["results"]] == ["created", *["error"] * len(bad), "created"]
        assert [one["error"]["field"] for one in body["results"][1:-1]] == [
            "sessions[1].total_duration_seconds",
            "sessions[2]",
            "sessions[3].client_session_id",
            "sessions[4].started_at",
            "sessions[5].ended_at",
            "sessions[6].device_metrics.avg_power_watts",
            "sessions[7].device_metrics",
        ]

    async def test_stats_are_derived_until_the_app_sets_them(self, phone: Phone) -> None:
        nothing = (await phone.call("GET", "/users/me/stats")).json()
        assert nothing["total_sessions"] == 0
        assert nothing["updated_at"] == "1970-01-01T00:00:00Z"
        sessions = [device_session(), device_session(total_duration_seconds=60, total_distance_meters=0.5)]
        await phone.call("POST", "/sessions/batch_upload", json={"sessions": sessions})
        derived = (await phone.call("GET", "/v1/users/me/stats")).json()
        assert is_time(derived.pop("updated_at"))
        assert derived == {
            "total_sessions": 2,
            "total_duration_seconds": 1860,
            "total_distance_meters": 12501,
            "total_calories": 640,
            "total_xp": 100,
            "current_streak_days": 0,
            "extra": {},
            "source": dict.fromkeys(
                (
                    "total_sessions",
                    "total_duration_seconds",
                    "total_distance_meters",
                    "total_calories",
                    "total_xp",
                    "current_streak_days",
                ),
                "server",
            ),
        }
        answer = await phone.call("PATCH", "/users/me/stats", json={"total_xp": 7, "extra": {"badge": "gold"}})
        assert answer.status_code == 200
        said = answer.json()
        assert (said["total_xp"], said["source"]["total_xp"], said["extra"]) == (7, "app", {"badge": "gold"})
        assert (said["total_sessions"], said["source"]["total_sessions"]) == (2, "server")
        await phone.call("PATCH", "/v1/users/me/stats", json={"total_sessions": 0})
        kept = (await phone.call("GET", "/users/me/stats")).json()
        assert (kept["total_xp"], kept["total_sessions"], kept["source"]["total_sessions"]) == (7, 0, "app")
        assert kept["extra"] == {"badge": "gold"}
