"""Synchronizations by wire, through Envoy and the real library against a stand-in for Garmin."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from deploy.parts import running
from runtime.migrations import migrate
from services.garmin import queue_schema
from tests.conftest import Edge, config_for, envoy_for, service_part, until_healthy
from tests.garmin.linked import STATUS, Linked, add_runs, linked, recording
from tests.garmin.standin import StandIn, standing_in
from tests.polling import until
from tests.uploads.recordings import sample

IN_PROGRESS = "A synchronization is already in progress. Please wait or check status."
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    with standing_in() as started:
        yield started


@pytest.fixture(autouse=True)
def well(standin: StandIn) -> Iterator[None]:
    yield
    standin.well()


@pytest.fixture(scope="module")
async def edge(
    new_database: Callable[[], str], redis_url: str, tmp_path_factory: pytest.TempPathFactory, standin: StandIn
) -> AsyncIterator[Edge]:
    """A mesh whose Garmin is the stand-in."""
    directory = tmp_path_factory.mktemp("garmin")
    config = config_for(directory / "home", database_url=new_database(), redis_url=redis_url)
    part = service_part("all", config, directory, garmin_url=standin.url)
    async with running(part), envoy_for(config, directory) as started:
        await until_healthy(started)
        yield started


@pytest.fixture
async def ada(edge: Edge, standin: StandIn) -> Linked:
    return await linked(edge, standin)


class TestAsUsersSeeIt:
    async def test_before_the_first_one_it_is_idle_since_the_epoch(self, ada: Linked) -> None:
        status = await ada.status()
        assert status["status"] == "idle"
        assert status["progress"] == 0.0
        assert status["start_time"] == "1970-01-01T00:00:00Z"
        assert status.get("end_time") is None
        assert status.get("error_message") is None
        assert status.get("job_type") is None

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("activities", "Activity synchronization initiated successfully."),
            ("health", "Health metrics synchronization initiated successfully."),
            ("workouts", "Workout synchronization initiated successfully."),
        ],
    )
    async def test_each_kind_says_that_it_has_begun_and_ends(self, ada: Linked, kind: str, message: str) -> None:
        answer = await ada.phone.call("POST", f"/api/v1/garmin/{kind}", json={})
        assert (answer.status_code, answer.json()["message"]) == (200, message)
        status = await ada.until_over()
        assert (status["status"], status["job_type"], status["progress"]) == ("completed", kind, 1.0)
        assert status["end_time"] >= status["start_time"]

    async def test_a_second_one_is_refused_while_one_runs(self, ada: Linked, standin: StandIn) -> None:
        standin.slow(0.5)
        await ada.start()
        answers = await asyncio.gather(
            *(
                ada.phone.call("POST", f"/api/v1/garmin/{kind}", json={})
                for kind in ("activities", "health", "workouts")
            )
        )
        assert [(one.status_code, one.json()) for one in answers] == [(409, {"detail": IN_PROGRESS})] * 3
        standin.well()
        await ada.until_over()

    async def test_of_twenty_at_once_one_begins(self, ada: Linked) -> None:
        answers = await asyncio.gather(*(ada.phone.call("POST", "/api/v1/garmin/health", json={}) for _ in range(20)))
        assert sorted(one.status_code for one in answers) == [200] + [409] * 19
        await ada.until_over()

    async def test_without_a_linked_account_there_is_nothing_to_begin(self, edge: Edge) -> None:
        phone = await edge.phone()
        for kind in ("activities", "health", "workouts"):
            answer = await phone.call("POST", f"/api/v1/garmin/{kind}", json={})
            assert answer.status_code == 404
            assert "No Garmin account is linked" in answer.json()["detail"]
        assert (await phone.call("GET", STATUS)).json()["status"] == "idle"

    async def test_a_since_that_is_no_day_is_refused(self, ada: Linked) -> None:
        for since in ("yesterday", "2026-13-01", "20260131", "1999-12-31", "2999-01-01"):
            answer = await ada.phone.call("POST", "/api/v1/garmin/activities", json={"since": since})
            assert answer.status_code == 400, since
            assert "since" in answer.json()["detail"]

    async def test_it_can_be_cancelled_and_begun_again(self, ada: Linked, standin: StandIn) -> None:
        add_runs(ada.account, 30)
        standin.slow(0.3, where="download-service")
        await ada.start()

        async def some_done() -> bool:
            return (await ada.status())["created"] > 0

        await until(some_done)
        assert (await ada.phone.call("DELETE", "/api/v1/garmin/sync")).json() == {"cancelled": True}
        status = await ada.status()
        assert (status["status"], status["error_message"]) == ("failed", "The synchronization was cancelled.")
        assert (await ada.syncs())[0]["status"] == "cancelled"
        assert (await ada.phone.call("DELETE", "/api/v1/garmin/sync")).json() == {"cancelled": False}
        brought = status["created"]
        standin.well()
        status = await ada.synced()
        assert status["status"] == "completed"
        # What was under way when it was cancelled may have got here without being noted.
        assert status["duplicates"] >= brought
        assert status["created"] + status["duplicates"] == 30
        await ada.activities(30)

    async def test_the_list_tells_of_all_page_by_page(self, ada: Linked) -> None:
        kinds = ["health", "activities", "workouts"]
        for kind in kinds:
            await ada.synced(kind)
        seen, token = [], ""
        while True:
            params = {"page_size": 2, **({"page_token": token} if token else {})}
            page = (await ada.phone.call("GET", "/api/v1/garmin/syncs", params=params)).json()
            seen += [one["job_type"] for one in page["syncs"]]
            token = page["next_page_token"]
            if not token:
                break
        assert seen == kinds[::-1]
        assert not any(one["scheduled"] for one in await ada.syncs())

    async def test_the_interval_is_set_and_shown(self, ada: Linked, edge: Edge) -> None:
        answer = await ada.phone.call("PUT", "/api/v1/garmin/schedule", json={"interval_hours": 24})
        assert answer.json()["interval_hours"] == 24
        due = datetime.fromisoformat(answer.json()["next_sync_at"])
        assert timedelta(hours=21) < due - datetime.now(UTC) < timedelta(hours=27)
        shown = (await ada.phone.call("GET", "/api/garmin/account")).json()
        assert (shown["interval_hours"], shown["next_sync_at"]) == (24, answer.json()["next_sync_at"])
        never = (await ada.phone.call("PUT", "/api/v1/garmin/schedule", json={"interval_hours": 0})).json()
        assert (never["interval_hours"], never.get("next_sync_at")) == (0, None)
        for wrong in (-1, 169):
            answer = await ada.phone.call("PUT", "/api/v1/garmin/schedule", json={"interval_hours": wrong})
            assert answer.status_code == 400
        stranger = await edge.phone()
        answer = await stranger.call("PUT", "/api/v1/garmin/schedule", json={"interval_hours": 1})
        assert answer.status_code == 404


class TestTheSchedule:
    async def test_what_is_due_is_synchronized_once_everything_after_everything(self, ada: Linked, edge: Edge) -> None:
        add_runs(ada.account, 2)
        execute(edge, "UPDATE garmin.links SET next_sync_at = now() WHERE user_id = %s", ada.phone.user_id)

        async def all_done() -> bool:
            syncs = await ada.syncs()
            return len(syncs) == 3 and all(one["status"] == "completed" for one in syncs)

        await until(all_done, 40)
        syncs = await ada.syncs()
        assert [one["job_type"] for one in syncs] == ["workouts", "health", "activities"]
        assert all(one["scheduled"] for one in syncs)
        await ada.activities(2)
        due = (await ada.phone.call("GET", "/api/garmin/account")).json()["next_sync_at"]
        assert datetime.fromisoformat(due) > datetime.now(UTC) + timedelta(hours=5)

    async def test_it_pauses_while_garmin_wants_a_sign_in(self, ada: Linked, edge: Edge) -> None:
        ada.account.revoke()
        status = await ada.synced()
        assert (status["status"], "Link the account again" in status["error_message"]) == ("failed", True)
        assert (await ada.phone.call("GET", "/api/garmin/account")).json()["needs_sign_in"]
        execute(edge, "UPDATE garmin.links SET next_sync_at = now() WHERE user_id = %s", ada.phone.user_id)
        other = Linked((await linked_to(edge, ada)).phone, ada.account)
        assert other.phone.user_id != ada.phone.user_id
        execute(edge, "UPDATE garmin.links SET next_sync_at = now() WHERE user_id = %s", other.phone.user_id)

        async def other_has_one() -> bool:
            return bool(await other.syncs())

        await until(other_has_one, 40)
        assert len(await ada.syncs()) == 1


class TestActivities:
    async def test_new_ones_become_files_and_records_and_a_repeat_brings_nothing(self, ada: Linked) -> None:
        ids = add_runs(ada.account, 7)
        status = await ada.synced()
        assert (status["status"], status["created"], status["duplicates"], status["failed"]) == ("completed", 7, 0, 0)
        found = await ada.activities(7)
        assert {one["sport"] for one in found.values()} == {"running"}
        files = (await ada.phone.call("GET", "/api/v1/files")).json()["files"]
        assert len(files) == 7
        downloads = len(ada.account.downloads)
        status = await ada.synced()
        assert (status["created"], status["duplicates"], status["failed"]) == (0, 7, 0)
        assert len(ada.account.downloads) == downloads == len(ids)
        await ada.activities(7)

    async def test_by_force_all_are_looked_at_again_and_stay_what_they_are(self, ada: Linked) -> None:
        add_runs(ada.account, 3)
        await ada.synced()
        status = await ada.synced(force=True)
        assert (status["created"], status["duplicates"]) == (0, 3)
        assert len(ada.account.downloads) == 6
        await ada.activities(3)

    async def test_one_that_was_recorded_meanwhile_and_one_that_was_changed_are_brought(self, ada: Linked) -> None:
        add_runs(ada.account, 3)
        await ada.synced()
        first = str(ada.account.activities[0]["activityId"])
        ada.account.files[first] = ("fit", recording(NOW - timedelta(hours=1), seconds=900))
        ada.account.activities[0]["duration"] = 900.0
        ada.account.add_activity(NOW, content=recording(NOW), activityId=77)
        status = await ada.synced()
        assert (status["created"], status["duplicates"]) == (2, 2)
        assert ada.account.downloads[3:].count("77") == 1
        assert len(ada.account.downloads) == 5

    async def test_only_those_since_a_day_are_brought(self, ada: Linked) -> None:
        for days in (200, 40, 2):
            start = NOW - timedelta(days=days)
            ada.account.add_activity(start, content=recording(start))
        since = (NOW - timedelta(days=10)).date().isoformat()
        assert (await ada.synced(since=since))["created"] == 1
        assert (await ada.synced())["created"] == 1  # what lies before that day is still to come
        assert (await ada.synced(since="2020-01-01"))["created"] == 1

    async def test_what_cannot_be_read_is_told_item_by_item_and_the_others_come(self, ada: Linked) -> None:
        add_runs(ada.account, 4)
        bad = {
            "1001": ("fit", sample("broken-crc.fit")),
            "1002": ("fit", sample("weight-scale.fit")),
            "1003": ("fit", b"x" * (100 * 1024 * 1024)),
        }
        for id, (format, content) in bad.items():
            ada.account.add_activity(NOW - timedelta(days=1), content=content, format=format, activityId=int(id))
        ada.account.add_activity(NOW - timedelta(days=1), content=b"", activityId=1004)
        status = await ada.synced()
        assert (status["status"], status["created"], status["failed"]) == ("completed", 4, 4)
        errors = {one["item_id"]: one["message"] for one in (await ada.syncs())[0]["errors"]}
        assert errors.keys() == {"1001", "1002", "1003", "1004"}
        assert "checksum" in errors["1001"]
        assert "no activity" in errors["1002"]
        assert "large" in errors["1003"]
        assert "no recording" in errors["1004"]
        # Not every six hours again.
        status = await ada.synced()
        assert (status["created"], status["failed"], status["duplicates"]) == (0, 0, 8)

    async def test_gpx_and_tcx_come_too(self, ada: Linked) -> None:
        ada.account.add_activity(NOW, content=sample("cerknicko-jezero.gpx"), format="gpx")
        ada.account.add_activity(NOW, content=sample("run.tcx"), format="tcx")
        assert (await ada.synced())["created"] == 2
        assert {one["kind"] for one in (await ada.activities(2)).values()} == {"gpx", "tcx"}

    async def test_a_hundred_item_errors_are_kept_and_all_are_counted(self, ada: Linked) -> None:
        for number in range(120):
            ada.account.add_activity(NOW - timedelta(hours=number), content=b"", activityId=5000 + number)
        assert (await ada.synced())["failed"] == 120
        assert len((await ada.syncs())[0]["errors"]) == 100

    async def test_progress_grows_to_one_in_small_steps(self, ada: Linked, standin: StandIn) -> None:
        add_runs(ada.account, 20)
        standin.slow(0.15, where="download-service")
        await ada.start()
        seen = [0.0]
        while (status := await ada.status())["status"] == "in_progress":
            seen.append(status["progress"])
        seen.append(status["progress"])
        steps = [after - before for before, after in itertools.pairwise(seen)]
        assert min(steps) >= 0
        assert max(steps) <= 0.35  # four at a time, and a machine that is busy
        assert len(set(seen)) > 4


class TestHealth:
    async def test_days_become_measurements_with_their_dates_and_a_repeat_changes_nothing(self, ada: Linked) -> None:
        today = NOW.date()
        for days in range(3):
            ada.account.add_day(today - timedelta(days=days))
        status = await ada.synced("health")
        assert (status["status"], status["failed"], status["duplicates"]) == ("completed", 0, 0)
        found = await ada.feed("health_metric")
        assert status["created"] == len(found) == 30
        steps = found[f"garmin-steps-{today}"]
        assert steps == {
            "type": "steps",
            "value": 10432,
            "unit": "count",
            "calendar_date": str(today),
            "source": "garmin",
            "detail": steps["detail"],
        }
        kinds = {"steps", "heart_rate_min", "heart_rate_max", "heart_rate_resting", "stress", "sleep", "hrv", "weight"}
        assert {one["type"] for one in found.values()} == kinds | {"body_battery_max", "body_battery_min"}
        status = await ada.synced("health")
        assert (status["created"], status["duplicates"]) == (0, 30)
        listed = (await ada.phone.call("GET", "/health_metrics", params={"type": "weight"})).json()
        assert {one["value"] for one in listed["health_metrics"]} == {71.35}

    async def test_a_value_that_garmin_corrects_is_corrected_here(self, ada: Linked) -> None:
        today = NOW.date()
        ada.account.add_day(today)
        await ada.synced("health")
        ada.account.days[str(today)]["summary"]["totalSteps"] = 12000
        status = await ada.synced("health")
        assert (status["created"], status["duplicates"]) == (1, 9)
        assert (await ada.feed("health_metric"))[f"garmin-steps-{today}"]["value"] == 12000

    async def test_what_lies_before_a_day_that_was_asked_for_is_still_to_come(self, ada: Linked) -> None:
        today = NOW.date()
        for days in (0, 8):
            ada.account.add_day(today - timedelta(days=days))
        assert (await ada.synced("health", since=str(today - timedelta(days=1))))["created"] == 10
        status = await ada.synced("health")
        assert (status["created"], status["duplicates"]) == (10, 10)

    async def test_the_offset_of_the_place_is_told_where_garmin_tells_it(self, ada: Linked) -> None:
        day = NOW.date()
        said = {"wellnessStartTimeGmt": f"{day}T18:30:00.0", "wellnessStartTimeLocal": f"{day}T00:00:00.0"}
        summary = {"totalSteps": 1, **said, "wellnessStartTimeGmt": f"{day - timedelta(days=1)}T18:30:00.0"}
        ada.account.add_day(day, summary=summary)
        await ada.synced("health")
        assert (await ada.feed("health_metric"))[f"garmin-steps-{day}"]["zone_offset_minutes"] == 330

    async def test_a_day_that_cannot_be_read_is_told_and_the_others_come(self, ada: Linked, standin: StandIn) -> None:
        today = NOW.date()
        for days in range(4):
            ada.account.add_day(today - timedelta(days=days))
        bad = today - timedelta(days=2)
        standin.trouble(f"hrv/{bad}", body=b'"nonsense"')
        status = await ada.synced("health")
        assert (status["status"], status["failed"], status["created"]) == ("completed", 1, 30)
        assert [one["item_id"] for one in (await ada.syncs())[0]["errors"]] == [str(bad)]


PLAN: dict[str, Any] = {
    "name": "4x4",
    "sport": "running",
    "steps": [
        {"type": "warm-up", "duration_seconds": 600},
        {
            "type": "repeat",
            "count": 4,
            "steps": [
                {"type": "interval", "duration_seconds": 240, "target": {"heart_rate": {"min": 160, "max": 175}}},
                {"type": "recovery", "distance_meters": 400, "target": {"pace": {"min": 300, "max": 360}}},
            ],
        },
        {"type": "interval", "duration_seconds": 60, "target": {"power": {"min": 250, "max": 280}}},
        {"type": "cool-down", "target": "open"},
    ],
}


async def plan(ada: Linked, id: str = "", **given: Any) -> str:
    answer = await ada.phone.call("POST", "/workout_plans", json={"id": id or str(uuid4()), **PLAN, **given})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


class TestWorkouts:
    async def test_plans_become_workouts_and_a_repeat_sends_nothing(self, ada: Linked) -> None:
        await plan(ada, scheduled_date="2026-12-24")
        await plan(ada, name="undated")
        status = await ada.synced("workouts")
        assert (status["status"], status["created"], status["failed"]) == ("completed", 2, 0)
        workouts = {one["workoutName"]: (id, one) for id, one in ada.account.workouts.items()}
        assert workouts.keys() == {"4x4", "undated"}
        assert ada.account.schedule == [(workouts["4x4"][0], "2026-12-24")]
        steps = workouts["4x4"][1]["workoutSegments"][0]["workoutSteps"]
        assert [one["stepType"]["stepTypeKey"] for one in steps] == ["warmup", "repeat", "interval", "cooldown"]
        first, second = steps[1]["workoutSteps"]
        assert (first["targetType"]["workoutTargetTypeKey"], first["targetValueOne"]) == ("heart.rate.zone", 160)
        assert second["endCondition"]["conditionTypeKey"] == "distance"
        assert (second["targetValueOne"], second["targetValueTwo"]) == (2.7778, 3.3333)
        assert steps[3]["endCondition"]["conditionTypeKey"] == "lap.button"
        assert workouts["4x4"][1]["estimatedDurationInSecs"] == 600 + 4 * 240 + 60
        status = await ada.synced("workouts")
        assert (status["created"], status["duplicates"]) == (0, 2)
        assert len(ada.account.workouts) == 2
        assert len(ada.account.schedule) == 1

    async def test_a_change_replaces_and_a_deletion_deletes(self, ada: Linked) -> None:
        changed, deleted = await plan(ada), await plan(ada, name="to be deleted")
        await ada.synced("workouts")
        await plan(ada, changed, name="5x5")
        change = {"domain": "workout_plan", "id": deleted, "operation": "DELETE", "base_version": 1}
        await ada.phone.call("POST", "/api/v1/sync/push", json={"changes": [change]})
        status = await ada.synced("workouts")
        assert (status["status"], status["created"]) == ("completed", 1)
        assert [one["workoutName"] for one in ada.account.workouts.values()] == ["5x5"]
        await ada.synced("workouts")
        assert len(ada.account.workouts) == 1

    async def test_workouts_of_the_users_own_are_left_alone(self, ada: Linked) -> None:
        ada.account.workouts["42"] = {"workoutName": "mine", "description": "satchel: none of yours"}
        id = await plan(ada)
        await ada.synced("workouts")
        await plan(ada, id, name="another")
        await ada.synced("workouts", force=True)
        assert sorted(one["workoutName"] for one in ada.account.workouts.values()) == ["another", "mine"]

    @pytest.mark.parametrize(
        ("step", "place"),
        [
            ({"type": "jump"}, "steps[0].type"),
            ({"type": "interval", "target": {"mood": {"min": 1, "max": 2}}}, "steps[0].target.mood"),
            ({"type": "interval", "target": {"pace": {"min": 0, "max": 2}}}, "steps[0].target.pace"),
            ({"type": "interval", "duration_seconds": "long"}, "steps[0].duration_seconds"),
            ({"type": "interval", "steps": [{"duration_seconds": "long"}], "target": 7}, "steps[0].target"),
            ({"type": "repeat", "count": 0, "steps": [{"type": "rest"}]}, "steps[0].count"),
            (
                {"type": "repeat", "count": 2, "steps": [{"type": "warm-up"}, {"type": "dance"}]},
                "steps[0].steps[1].type",
            ),
        ],
    )
    async def test_a_step_that_garmin_knows_not_is_told_and_other_plans_go(
        self, ada: Linked, step: dict[str, Any], place: str
    ) -> None:
        bad, _ = await plan(ada, steps=[step]), await plan(ada, name="good")
        status = await ada.synced("workouts")
        assert (status["status"], status["created"], status["failed"]) == ("completed", 1, 1)
        (error,) = (await ada.syncs())[0]["errors"]
        assert error["item_id"] == bad
        assert error["message"].startswith(place)
        assert [one["workoutName"] for one in ada.account.workouts.values()] == ["good"]

    async def test_a_step_that_only_looks_like_a_repeat_is_one_step(self, ada: Linked) -> None:
        await plan(ada, steps=[{"type": "interval", "duration_seconds": 60, "count": "many", "steps": "none"}])
        status = await ada.synced("workouts")
        assert (status["status"], status["created"]) == ("completed", 1)
        (workout,) = ada.account.workouts.values()
        assert workout["estimatedDurationInSecs"] == 60

    async def test_a_workout_that_cannot_be_deleted_is_told_and_tried_again(
        self, ada: Linked, standin: StandIn
    ) -> None:
        deleted = await plan(ada)
        await ada.synced("workouts")
        change = {"domain": "workout_plan", "id": deleted, "operation": "DELETE", "base_version": 1}
        await ada.phone.call("POST", "/api/v1/sync/push", json={"changes": [change]})
        (workout_id,) = ada.account.workouts
        standin.trouble(f"/workout-service/workout/{workout_id}", status=403)
        await plan(ada, name="another")
        status = await ada.synced("workouts")
        assert (status["status"], status["created"], status["failed"]) == ("completed", 1, 1)
        standin.well()
        assert (await ada.synced("workouts"))["status"] == "completed"
        assert [one["workoutName"] for one in ada.account.workouts.values()] == ["another"]


class TestAnotherAccount:
    async def test_everything_begins_anew_with_it(self, ada: Linked, standin: StandIn) -> None:
        add_runs(ada.account, 2)
        await plan(ada)
        await ada.synced()
        await ada.synced("workouts")
        other = Linked(ada.phone, standin.account())
        long_ago = NOW - timedelta(days=60)
        other.account.add_activity(long_ago, content=recording(long_ago), activityId=4711)
        await link(other)
        assert (await other.synced())["created"] == 1
        status = await other.synced("workouts")
        assert (status["created"], len(other.account.workouts)) == (1, 1)

    async def test_the_same_one_linked_again_goes_on_where_it_was(self, ada: Linked) -> None:
        await plan(ada, scheduled_date="2026-12-24")
        await ada.synced("workouts")
        assert (await ada.phone.call("DELETE", "/api/garmin/account")).json() == {"unlinked": True}
        await link(ada)
        assert (await ada.synced("workouts"))["duplicates"] == 1
        assert len(ada.account.schedule) == 1

    async def test_what_runs_with_the_one_before_ends(self, ada: Linked, standin: StandIn) -> None:
        add_runs(ada.account, 20)
        standin.slow(0.3, where="download-service")
        await ada.start()
        await link(Linked(ada.phone, standin.account()))
        assert (await ada.syncs())[0]["status"] == "cancelled"


class TestWhenGarminIsUnwell:
    async def test_it_waits_for_garmin_and_goes_on(self, ada: Linked, standin: StandIn) -> None:
        add_runs(ada.account, 6)
        standin.limit(where="download-service", retry_after="2", times=3)
        status = await ada.synced()
        assert (status["status"], status["created"], status["failed"]) == ("completed", 6, 0)
        await ada.activities(6)

    async def test_a_list_that_is_refused_for_a_moment_is_asked_for_again(
        self, ada: Linked, standin: StandIn, edge: Edge
    ) -> None:
        add_runs(ada.account, 1)
        standin.trouble("/activitylist-service/", status=403, times=1)
        await ada.start()

        async def waits_no_longer() -> bool:
            """It waited, and the time for which it was to wait is over."""
            over = "UPDATE procrastinate_jobs SET scheduled_at = now() WHERE lock = %s AND scheduled_at > now()"
            with psycopg.connect(edge.mesh.config.database_url) as connection:
                connection.execute("SET search_path TO garmin")
                return connection.execute(over, [ada.phone.user_id]).rowcount == 1

        await until(waits_no_longer)
        status = await ada.until_over()
        assert (status["status"], status["created"]) == ("completed", 1)

    async def test_a_lost_link_ends_it_quietly(self, ada: Linked, standin: StandIn) -> None:
        add_runs(ada.account, 20)
        standin.slow(0.3, where="download-service")
        await ada.start()
        assert (await ada.phone.call("DELETE", "/api/garmin/account")).json() == {"unlinked": True}
        assert (await ada.until_over())["status"] == "failed"
        assert (await ada.syncs())[0]["status"] == "cancelled"

    async def test_an_account_that_is_deleted_ends_it_and_leaves_nothing(
        self, ada: Linked, standin: StandIn, edge: Edge
    ) -> None:
        await ada.synced("health")
        add_runs(ada.account, 20)
        standin.slow(0.2, where="download-service")
        await ada.start()
        assert (await ada.phone.call("DELETE", "/v1/auth/me")).status_code in (200, 204)

        async def all_gone() -> bool:
            tables = ("jobs", "activities", "cursors", "workouts", "links", "accounts")
            left = [
                query(edge, f"SELECT 1 FROM garmin.{name} WHERE user_id = %s", ada.phone.user_id) for name in tables
            ]
            queued = query(edge, "SELECT 1 FROM garmin.procrastinate_jobs WHERE lock = %s", ada.phone.user_id)
            return not queued and not any(left)

        await until(all_gone, 40)


async def test_with_rate_limits_on_a_synchronization_spends_nothing_of_the_users(
    own_edge: Callable[..., Awaitable[Edge]], standin: StandIn
) -> None:
    ada = await linked(await own_edge(rate_limits="on", garmin_url=standin.url), standin)
    add_runs(ada.account, 70)
    status = await ada.synced()
    assert (status["status"], status["created"]) == ("completed", 70)
    form = {"file": ("mine.fit", recording(NOW - timedelta(days=9)), "application/octet-stream")}
    answer = await ada.phone.call("POST", f"/activities/{ada.phone.user_id}", files=form)
    assert answer.status_code == 201
    assert answer.headers["ratelimit-remaining"] == "59"


class TestTheQueuesTables:
    def test_they_are_those_of_the_installed_library(self, new_database: Callable[[], str]) -> None:
        """A newer library with migrations of its own wants a revision here that calls bring_up."""
        with psycopg.connect(new_database()) as connection:
            row = connection.execute("SELECT newest FROM garmin.queue_schema").fetchone()
        assert row == (queue_schema.newest(),)

    def test_an_older_database_gets_what_came_since(self, server_url: str, new_database: Callable[[], str]) -> None:
        url = new_database()
        with psycopg.connect(url) as connection:
            connection.execute(
                "UPDATE garmin.queue_schema SET newest = '03.04.00_01_pre_add_retry_failed_job_procedure'"
            )
            connection.execute("DROP FUNCTION IF EXISTS garmin.procrastinate_retry_job_v1 CASCADE")
            queue_schema.bring_up(connection)
            row = connection.execute("SELECT newest FROM garmin.queue_schema").fetchone()
            path = connection.execute("SHOW search_path").fetchone()
        assert row == (queue_schema.newest(),)
        assert path != ("garmin",)

    def test_all_of_it_can_be_dropped_and_made_again(self, new_database: Callable[[], str]) -> None:
        url = new_database()
        with psycopg.connect(url, autocommit=True) as connection:
            queue_schema.drop(connection)
            left = connection.execute(
                "SELECT relname FROM pg_class WHERE relname LIKE 'procrastinate%' OR relname = 'queue_schema'"
            ).fetchall()
            assert left == []
            with connection.transaction():
                queue_schema.bring_up(connection)
        migrate(url, "garmin")


def execute(edge: Edge, statement: str, *values: object) -> None:
    with psycopg.connect(edge.mesh.config.database_url, autocommit=True) as connection:
        connection.execute(statement, values)


def query(edge: Edge, statement: str, *values: object) -> list[Any]:
    with psycopg.connect(edge.mesh.config.database_url, autocommit=True) as connection:
        return connection.execute(statement, values).fetchall()


async def link(to: Linked) -> None:
    request = {"username": to.account.username, "password": to.account.password}
    answer = await to.phone.call("POST", "/api/garmin/login", json=request)
    assert answer.status_code == 200, answer.text


async def linked_to(edge: Edge, other: Linked) -> Linked:
    """Another user, who has the other one's account at Garmin."""
    phone = await edge.phone()
    request = {"username": other.account.username, "password": other.account.password}
    assert (await phone.call("POST", "/api/garmin/login", json=request)).status_code == 200
    return Linked(phone, other.account)
