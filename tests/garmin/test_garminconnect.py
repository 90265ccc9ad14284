"""The library against the stand-in: what it asks, and what becomes of what it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime

import pytest

from services.garmin.breaker import GuardedGarmin
from services.garmin.connect import (
    GarminAnswer,
    GarminAway,
    GarminRefused,
    GarminSession,
    MfaWanted,
    MfaWrong,
    RateLimited,
    RefreshableSession,
    SignedIn,
    SignInEnded,
    SignInLost,
    TokensExpired,
    WrongCredentials,
)
from services.garmin.garminconnect_client import GarminConnect, Hosts
from tests.garmin.standin import API, SAMPLES, SSO, TOKENS, Account, StandIn, standing_in
from tests.polling import until

DAY = date(2026, 2, 26)
START = datetime(2026, 2, 26, 7, 30, tzinfo=UTC)


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with standing_in() as started:
        yield started


@pytest.fixture
def garmin(standin: StandIn) -> GarminConnect:
    return GarminConnect(Hosts(domain="garmin.com", url=standin.url))


async def signed_in(garmin: GarminConnect, account: Account) -> SignedIn:
    outcome = await garmin.sign_in(account.username, account.password)
    assert isinstance(outcome, SignedIn)
    return outcome


async def session_of(garmin: GarminConnect, account: Account) -> RefreshableSession:
    return garmin.session((await signed_in(garmin, account)).tokens)


class TestSigningIn:
    async def test_the_right_password_gives_tokens_that_say_when_they_end(
        self, garmin: GarminConnect, standin: StandIn
    ) -> None:
        outcome = await signed_in(garmin, standin.account())
        assert outcome.expire_time is not None
        assert 3600 < (outcome.expire_time - datetime.now(UTC)).total_seconds() < 25 * 3600
        assert outcome.tokens not in repr(outcome)

    async def test_a_wrong_password_is_tried_once(self, garmin: GarminConnect, standin: StandIn) -> None:
        account = standin.account()
        for username, password in ((account.username, "wrong"), ("nobody@example.com", account.password)):
            before = standin.count("/mobile/api/login")
            with pytest.raises(WrongCredentials):
                await garmin.sign_in(username, password)
            assert standin.count("/mobile/api/login") == before + 1
        assert standin.count("/sso/signin") == 0

    async def test_where_the_door_for_apps_is_shut_the_widget_is_open(
        self, garmin: GarminConnect, standin: StandIn
    ) -> None:
        standin.mobile_sign_in = False
        account = standin.account()
        await signed_in(garmin, account)
        with pytest.raises(WrongCredentials):
            await garmin.sign_in(account.username, "wrong")
        assert standin.count("/sso/signin") > 0
        assert standin.count("/portal/") == 0

    @pytest.mark.parametrize("mobile", [True, False])
    async def test_a_sign_in_that_wants_a_code_goes_on_elsewhere(
        self, garmin: GarminConnect, standin: StandIn, mobile: bool
    ) -> None:
        standin.mobile_sign_in = mobile
        account = standin.account(mfa=True)
        wanted = await garmin.sign_in(account.username, account.password)
        assert isinstance(wanted, MfaWanted)
        assert wanted.state not in repr(wanted)
        elsewhere = GarminConnect(Hosts(domain="garmin.com", url=standin.url))
        with pytest.raises(MfaWrong):
            await elsewhere.finish_sign_in(wanted.state, "000000")
        outcome = await elsewhere.finish_sign_in(wanted.state, account.code)
        assert await elsewhere.session(outcome.tokens).activities(0, DAY, 10) == []

    async def test_a_sign_in_of_an_unknown_form_is_lost(self, garmin: GarminConnect) -> None:
        with pytest.raises(SignInLost):
            await garmin.finish_sign_in(json.dumps({"flow": "ios"}), "123456")

    async def test_a_limit_is_no_reason_to_try_every_door_there_is(
        self, garmin: GarminConnect, standin: StandIn
    ) -> None:
        standin.limit(SSO)
        with pytest.raises(RateLimited):
            await garmin.sign_in("ada@example.com", "password")
        assert standin.count("/portal/") == 0

    async def test_a_limit_where_tokens_come_from_ends_the_sign_in(
        self, garmin: GarminConnect, standin: StandIn
    ) -> None:
        account = standin.account()
        standin.limit(TOKENS, "77")
        with pytest.raises(RateLimited) as limited:
            await garmin.sign_in(account.username, account.password)
        assert limited.value.retry_after == 77
        assert account.sign_ins == 1

    async def test_nobody_there_is_not_a_wrong_password(self, garmin: GarminConnect, standin: StandIn) -> None:
        account = standin.account(mfa=True)
        standin.down()
        with pytest.raises(GarminAway):
            await garmin.sign_in(account.username, account.password)
        standin.well()
        wanted = await garmin.sign_in(account.username, account.password)
        assert isinstance(wanted, MfaWanted)
        standin.down()
        with pytest.raises(GarminAway):
            await garmin.finish_sign_in(wanted.state, account.code)
        standin.well()
        standin.nonsense(SSO)
        with pytest.raises(GarminAnswer):
            await garmin.finish_sign_in(wanted.state, account.code)
        standin.well()
        await garmin.finish_sign_in(wanted.state, account.code)


class TestSessions:
    async def test_activities_come_in_pages(self, garmin: GarminConnect, standin: StandIn) -> None:
        account = standin.account()
        ids = [account.add_activity(START.replace(day=1 + number), name=f"Run {number}") for number in range(7)]
        session = await session_of(garmin, account)
        pages = [await session.activities(start, date(2026, 2, 3), 2) for start in (0, 2, 4)]
        assert [[one.id for one in page] for page in pages] == [ids[6:4:-1], ids[4:2:-1], ids[2:3]]
        first = pages[0][0]
        assert (first.name, first.type, first.start_time) == ("Run 6", "running", START.replace(day=7))
        account.activities[0]["activityName"] = "A better name"
        account.activities[0]["somethingElse"] = 1
        again = await session.activities(0, date(2026, 2, 3), 2)
        assert again[0].marker != first.marker
        assert again[1].marker == pages[0][1].marker

    async def test_what_is_odd_in_a_list_stops_nothing_else(self, garmin: GarminConnect, standin: StandIn) -> None:
        account = standin.account()
        good = account.add_activity(START)
        odd = {"activityId": 2, "activityName": None, "activityType": "run", "startTimeGMT": 7}
        account.activities += [odd, {"activityName": "without an id"}]
        found = await (await session_of(garmin, account)).activities(0, DAY, 10)
        assert [one.id for one in found] == [good, "2"]
        assert (found[1].type, found[1].start_time) == ("", None)

    async def test_an_original_is_what_the_device_wrote(self, garmin: GarminConnect, standin: StandIn) -> None:
        account = standin.account()
        session = await session_of(garmin, account)
        fit = await session.download_original(account.add_activity(START))
        assert (fit.format, fit.content) == ("fit", (SAMPLES / "garmin-fenix-5-run.fit").read_bytes())
        gpx = await session.download_original(account.add_activity(START, content=b"<gpx/>", format="gpx"))
        assert (gpx.format, gpx.content) == ("gpx", b"<gpx/>")

    async def test_without_an_original_there_is_what_garmin_makes_of_it_or_nothing(
        self, garmin: GarminConnect, standin: StandIn
    ) -> None:
        account = standin.account()
        id = account.add_activity(START, content=b"")
        session = await session_of(garmin, account)
        with pytest.raises(GarminRefused):
            await session.download_original(id)
        account.exports[(id, "gpx")] = b"<gpx/>"
        assert (await session.download_original(id)).format == "gpx"
        account.exports[(id, "tcx")] = b"<tcx/>"
        assert (await session.download_original(id)).format == "tcx"

    async def test_no_archive_is_nonsense(self, garmin: GarminConnect, standin: StandIn) -> None:
        account = standin.account()
        id = account.add_activity(START)
        session = await session_of(garmin, account)
        standin.nonsense("/download-service/")
        with pytest.raises(GarminAnswer):
            await session.download_original(id)

    async def test_a_day_has_what_was_measured(self, garmin: GarminConnect, standin: StandIn) -> None:
        account = standin.account()
        account.add_day(DAY)
        session = await session_of(garmin, account)
        found = {one.type: one for one in await session.daily_metrics(DAY)}
        assert {type: (one.value, one.unit) for type, one in found.items()} == {
            "steps": (10_432, "count"),
            "heart_rate_min": (44, "bpm"),
            "heart_rate_max": (171, "bpm"),
            "heart_rate_resting": (48, "bpm"),
            "stress": (31, "score"),
            "body_battery_max": (95, "score"),
            "body_battery_min": (21, "score"),
            "sleep": (27_000, "s"),
            "hrv": (61, "ms"),
            "weight": (71.35, "kg"),
        }
        assert found["sleep"].timestamp == datetime(2026, 2, 25, 23, tzinfo=UTC)
        assert found["sleep"].detail["deep_seconds"] == 5400
        assert {one.calendar_date for one in found.values()} == {DAY}

    async def test_a_day_without_a_watch_has_nothing(self, garmin: GarminConnect, standin: StandIn) -> None:
        account = standin.account()
        account.add_day(DAY, summary={"totalSteps": None, "averageStressLevel": -1}, sleep={}, hrv=None, weight=None)
        session = await session_of(garmin, account)
        assert await session.daily_metrics(DAY) == []
        assert await session.daily_metrics(date(2020, 1, 1)) == []

    async def test_fields_of_other_types_are_left_out_and_no_object_is_nonsense(
        self, garmin: GarminConnect, standin: StandIn
    ) -> None:
        account = standin.account()
        account.add_day(DAY, summary={"totalSteps": "many", "restingHeartRate": 48}, sleep={}, hrv=None)
        account.days[DAY.isoformat()]["weight"] = {"dateWeightList": "none"}
        session = await session_of(garmin, account)
        assert [one.type for one in await session.daily_metrics(DAY)] == ["heart_rate_resting"]
        standin.trouble("/dailySleepData/", body=b"[1]")
        with pytest.raises(GarminAnswer):
            await session.daily_metrics(DAY)

    async def test_a_workout_goes_there_and_away_again(self, garmin: GarminConnect, standin: StandIn) -> None:
        account = standin.account()
        session = await session_of(garmin, account)
        id = await session.upload_workout({"workoutName": "4x4"})
        await session.schedule_workout(id, DAY)
        assert account.workouts == {id: {"workoutName": "4x4"}}
        assert account.schedule == [(id, "2026-02-26")]
        await session.delete_workout(id)
        await session.delete_workout(id)
        assert account.workouts == {}
        with pytest.raises(GarminRefused):
            await session.schedule_workout(id, DAY)

    async def test_tokens_are_refreshed_only_when_somebody_says_so(
        self, garmin: GarminConnect, standin: StandIn
    ) -> None:
        account = standin.account()
        session = await session_of(garmin, account)
        old = session.tokens
        account.expire()
        with pytest.raises(TokensExpired):
            await session.activities(0, DAY, 10)
        assert (account.refreshes, session.tokens) == (0, old)
        fresh = await session.refresh()
        assert session.tokens == fresh.tokens != old
        assert await session.activities(0, DAY, 10) == []
        assert account.refreshes == 1

    async def test_tokens_that_end_soon_are_not_even_tried(self, garmin: GarminConnect, standin: StandIn) -> None:
        account = standin.account(token_seconds=600)
        session = await session_of(garmin, account)
        with pytest.raises(TokensExpired):
            await session.activities(0, DAY, 10)
        assert standin.count("/activitylist-service/") == 0

    async def test_revoked_tokens_end_the_sign_in_and_a_bad_day_of_garmin_does_not(
        self, garmin: GarminConnect, standin: StandIn
    ) -> None:
        account = standin.account()
        session = await session_of(garmin, account)
        for trouble, error in (
            (standin.down, GarminAway),
            (standin.limit, RateLimited),
            (standin.nonsense, GarminAnswer),
        ):
            trouble(TOKENS)
            with pytest.raises(error):
                await session.refresh()
            standin.well()
        standin.trouble(TOKENS, status=503)
        with pytest.raises(GarminAway):
            await session.refresh()
        standin.well()
        account.revoke()
        with pytest.raises(SignInEnded):
            await session.refresh()

    async def test_senseless_tokens_end_the_sign_in(self, garmin: GarminConnect) -> None:
        for tokens in ("", "x", "{}", '{"garmin": "{}", "display_name": ""}'):
            with pytest.raises(SignInEnded):
                garmin.session(tokens)

    async def test_troubles_have_their_names(self, garmin: GarminConnect, standin: StandIn) -> None:
        session = await session_of(garmin, standin.account())
        expected: list[tuple[dict[str, object], type[Exception]]] = [
            ({"status": 429, "retry_after": "33"}, RateLimited),
            ({"status": 429, "retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, RateLimited),
            ({"status": 500}, GarminAway),
            ({"status": 503, "retry_after": "9"}, GarminAway),
            ({"hang_up": True}, GarminAway),
            ({"status": 400}, GarminRefused),
            ({"status": 403}, GarminRefused),
            ({"body": b"<html>"}, GarminAnswer),
            ({"body": b'{"no": "list"}'}, GarminAnswer),
        ]
        waits = []
        for trouble, error in expected:
            standin.trouble(API, **trouble)
            with pytest.raises(error) as caught:
                await session.activities(0, DAY, 10)
            waits.append(getattr(caught.value, "retry_after", None))
            standin.well()
        assert waits[:2] == [33, 1]
        assert waits[3] == 9

    async def test_slow_answers_hold_up_nobody_else(self, garmin: GarminConnect, standin: StandIn) -> None:
        slow, quick = await session_of(garmin, standin.account()), await session_of(garmin, standin.account())
        standin.trouble(API, seconds=2, times=1)
        waiting = asyncio.create_task(slow.activities(0, DAY, 10))
        while standin.count("/activitylist-service/") == 0:
            await asyncio.sleep(0.01)
        assert await quick.activities(0, DAY, 10) == []
        assert not waiting.done()
        assert await waiting == []

    async def test_sessions_never_mix(self, garmin: GarminConnect, standin: StandIn) -> None:
        accounts = [standin.account() for _ in range(6)]
        for number, account in enumerate(accounts):
            account.add_activity(START, activityId=number + 1)
        sessions: list[GarminSession] = [await session_of(garmin, account) for account in accounts]
        for _ in range(3):
            pages = await asyncio.gather(*(session.activities(0, DAY, 10) for session in sessions))
            assert [[one.id for one in page] for page in pages] == [[str(number + 1)] for number in range(6)]


async def arrived(standin: StandIn, lists: int) -> bool:
    return standin.count("/activitylist-service/") >= lists


class TestBreaker:
    async def test_what_one_user_is_told_holds_for_all(self, garmin: GarminConnect, standin: StandIn) -> None:
        clock = [0.0]
        guarded = GuardedGarmin(garmin, monotonic=lambda: clock[0])
        sessions = [guarded.session((await signed_in(garmin, standin.account())).tokens) for _ in range(2)]
        standin.limit(API, "50", times=1)
        with pytest.raises(RateLimited):
            await sessions[0].activities(0, DAY, 10)
        asked = standin.count("/activitylist-service/")
        clock[0] = 20
        with pytest.raises(RateLimited) as limited:
            await sessions[1].activities(0, DAY, 10)
        assert limited.value.retry_after == 30
        assert standin.count("/activitylist-service/") == asked
        clock[0] = 51
        assert await sessions[1].activities(0, DAY, 10) == []

    async def test_an_answer_to_an_earlier_question_does_not_end_the_pause(
        self, garmin: GarminConnect, standin: StandIn
    ) -> None:
        guarded = GuardedGarmin(garmin, monotonic=lambda: 0.0)
        sessions = [guarded.session((await signed_in(garmin, standin.account())).tokens) for _ in range(2)]
        asked = standin.count("/activitylist-service/")
        standin.trouble(API, seconds=0.5, times=1)
        early = asyncio.create_task(sessions[0].activities(0, DAY, 10))
        await until(lambda: arrived(standin, asked + 1))
        standin.limit(API, "50", times=1)
        with pytest.raises(RateLimited):
            await sessions[1].activities(0, DAY, 10)
        assert not early.done()
        assert await early == []
        with pytest.raises(RateLimited) as limited:
            await sessions[1].activities(0, DAY, 10)
        assert limited.value.retry_after == 50
        assert standin.count("/activitylist-service/") == asked + 2

    async def test_it_opens_after_some_failures_and_one_trial_closes_it(
        self, garmin: GarminConnect, standin: StandIn
    ) -> None:
        clock = [0.0]
        guarded = GuardedGarmin(garmin, monotonic=lambda: clock[0])
        session = guarded.session((await signed_in(garmin, standin.account())).tokens)
        standin.down(API)
        for _ in range(5):
            with pytest.raises(GarminAway):
                await session.activities(0, DAY, 10)
        asked = standin.count("/activitylist-service/")
        with pytest.raises(GarminAway):
            await session.activities(0, DAY, 10)
        assert standin.count("/activitylist-service/") == asked
        clock[0] = 16
        with pytest.raises(GarminAway):  # the trial
            await session.activities(0, DAY, 10)
        assert standin.count("/activitylist-service/") == asked + 1
        clock[0] = 32
        standin.well()
        with pytest.raises(GarminAway) as away:  # the pause is twice as long
            await session.activities(0, DAY, 10)
        assert away.value.retry_after == 14
        clock[0] = 47
        standin.trouble(API, seconds=0.3, times=1)
        trial, other = await asyncio.gather(
            session.activities(0, DAY, 10), session.activities(0, DAY, 10), return_exceptions=True
        )
        assert trial == []
        assert isinstance(other, GarminAway)
        assert await session.activities(0, DAY, 10) == []
