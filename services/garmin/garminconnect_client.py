"""Owns how Garmin is spoken to: the library garminconnect, off the loop, one object of it per user and session.

What the library says in exceptions and log lines may carry answers of Garmin's, tokens and addresses in them: none of
it leaves this file. Statuses are what is judged, never texts.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import threading
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

from curl_cffi import requests as cffi_requests
from garminconnect import Garmin as Library
from garminconnect import client as library
from garminconnect.exceptions import GarminConnectAuthenticationError, GarminConnectTooManyRequestsError

from runtime.telemetry import logger
from services.garmin import garminconnect_answers as answers
from services.garmin.connect import (
    Activity,
    DailyMetric,
    GarminAnswer,
    GarminAway,
    GarminRefused,
    MfaWanted,
    MfaWrong,
    Original,
    RateLimited,
    SignedIn,
    SignInEnded,
    SignInLost,
    TokensExpired,
    Workout,
    WrongCredentials,
)

T = TypeVar("T")

# Calls at once, of all users: who has more of them waits. A sign-in may take the library a minute and more.
CALLS_AT_ONCE: Final = 8
SIGN_INS_AT_ONCE: Final = 4
# Of seconds, for a call with its turn to wait for. Each of the library's requests has 15 or 30 of its own.
CALL_DEADLINE: Final = 90.0
SIGN_IN_DEADLINE: Final = 180.0
# Seconds; where Garmin's answer names none, and for a sign-in, whose answers the library keeps to itself.
PAUSE: Final = 60.0
SIGN_IN_PAUSE: Final = 300.0
LONGEST_PAUSE: Final = 3600.0
# Garmin's own limit of what may be uploaded is far below.
MAX_ORIGINAL_BYTES: Final = 64 * 1024 * 1024
# Of what a browser would do: they wait up to 20 seconds, six times, and send the password again each time.
SKIPPED: Final = frozenset({"portal+cffi", "portal+requests"})
_FORMATS: Final = ("fit", "gpx", "tcx")


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Where Garmin is."""

    domain: str
    """garmin.com or garmin.cn."""
    url: str
    """What stands in for it, with each host as a first segment of the path; empty: nothing does."""

    def of(self, url: str) -> str:
        """Where one of Garmin's addresses is looked for."""
        parts = urlsplit(url)
        host = f"{(parts.hostname or '').removesuffix('.com').removesuffix('.cn')}.{self.domain.rpartition('.')[2]}"
        start = f"{self.url.rstrip('/')}/{host}" if self.url else f"https://{host}"
        return start + parts.path


class _Heard(threading.local):
    """What Garmin said to the request that this thread made last."""

    status = 0
    """0: nothing."""
    retry_after: float | None = None
    refresh_wanted = False
    has_ticket = False
    nonsense = False

    def begin(self) -> None:
        self.__dict__.clear()

    def hear(self, response: Any, *_: Any, **__: Any) -> None:
        self.status = int(response.status_code)
        self.retry_after = _seconds(response.headers.get("Retry-After"))


class _Client(library.Client):  # type: ignore[misc]  # it ships no types
    """The library's client, which hears what Garmin answers, and leaves refreshing to who stores tokens."""

    _mfa_session: Any

    def __init__(self, hosts: Hosts) -> None:
        super().__init__(domain=hosts.domain)
        self.heard = _Heard()
        self._hosts = hosts
        for name in ("_sso", "_connect", "_connectapi"):
            setattr(self, name, hosts.of(getattr(self, name)))
        self.skip_strategies = set(SKIPPED)
        if kept := getattr(self, "_api_session", None):  # of later versions, which make no fresh one per request
            kept.hooks["response"].append(self.heard.hear)

    def _fresh_api_session(self) -> Any:
        session = super()._fresh_api_session()
        session.hooks["response"].append(self.heard.hear)
        return session

    def _portal_web_login_cffi(self, email: str, password: str) -> None:
        raise GarminConnectTooManyRequestsError  # as if it were tried: versions that cannot skip come here

    def _portal_web_login_requests(self, email: str, password: str) -> None:
        raise GarminConnectTooManyRequestsError

    def _establish_session(self, ticket: str, sess: Any = None, service_url: str | None = None) -> None:
        """Without the library's other way, by cookies: they cannot be stored.

        And no failure here is one of the password, which another strategy would send again: it ends the sign-in.
        """
        self.heard.begin()
        self.heard.has_ticket = True
        try:
            self._exchange_service_ticket(ticket, service_url=service_url)
        except Exception:
            raise GarminConnectAuthenticationError from None

    def _complete_mfa(self, mfa_code: str) -> None:
        self._mfa_session = _Hearing(self._mfa_session, self.heard, is_json=self._mfa_flow != "widget")
        super()._complete_mfa(mfa_code)

    def _http_post(self, url: str, **kwargs: Any) -> Any:
        response = super()._http_post(self._hosts.of(url), **kwargs)
        self.heard.hear(response)
        return response

    def _refresh_session(self) -> None:
        self.heard.refresh_wanted = True
        raise TokensExpired

    def take_new_tokens(self) -> None:
        """Refreshes, now."""
        self._refresh_di_token()


class _Turns:
    """Runs work in threads of its own, a few at a time; none of them keeps the process from ending."""

    def __init__(self, at_once: int, deadline: float) -> None:
        self._gate = asyncio.Semaphore(at_once)
        self._deadline = deadline

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` comes to. Raises GarminAway after the deadline; its turn still lasts until it has ended."""
        try:
            async with asyncio.timeout(self._deadline):
                await self._gate.acquire()
                future: Future[T] = Future()
                loop = asyncio.get_running_loop()
                threading.Thread(target=self._carry_out, args=(loop, future, work), name="garmin", daemon=True).start()
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise GarminAway from None

    def _carry_out(self, loop: asyncio.AbstractEventLoop, future: Future[T], work: Callable[[], T]) -> None:
        try:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
        finally:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._gate.release)


class GarminConnect:
    """Garmin, by way of the library."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._calls = _Turns(CALLS_AT_ONCE, CALL_DEADLINE)
        self._sign_ins = _Turns(SIGN_INS_AT_ONCE, SIGN_IN_DEADLINE)
        for name in ("garminconnect", "curl_cffi"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)

    async def sign_in(self, username: str, password: str) -> SignedIn | MfaWanted:
        """As Garmin.sign_in; the library tries more than one of Garmin's doors, and stops at the first that says no."""

        def work() -> SignedIn | MfaWanted:
            client = _Client(self._hosts)
            try:
                outcome, state = client.login(username, password, return_on_mfa=True)
            except Exception as error:
                raise _refused_sign_in(client.heard, error, WrongCredentials()) from None
            if outcome == "needs_mfa":
                return MfaWanted(state=json.dumps(_frozen(client, state)))
            return _signed_in(client, "")

        return await self._sign_ins.run(work)

    async def finish_sign_in(self, state: str, code: str) -> SignedIn:
        """As Garmin.finish_sign_in; in whatever process the sign-in began."""

        def work() -> SignedIn:
            client = _Client(self._hosts)
            try:
                client.resume_login(_thawed(client, json.loads(state)), code)
            except SignInLost:
                raise
            except Exception as error:
                raise _refused_sign_in(client.heard, error, MfaWrong()) from None
            return _signed_in(client, "")

        return await self._sign_ins.run(work)

    def session(self, tokens: str) -> LibrarySession:
        """As Garmin.session."""
        return LibrarySession(self._calls, self._hosts, tokens)


class LibrarySession:
    """A user's session: one object of the library, which nobody else ever has."""

    def __init__(self, calls: _Turns, hosts: Hosts, tokens: str) -> None:
        self._calls = calls
        self._tokens = tokens
        self._client = _Client(hosts)
        self._library = Library(is_cn=hosts.domain == "garmin.cn")
        self._library.client = self._client
        self._library.retry_attempts = 0  # of later versions: whether to try again is the job's to say
        try:
            said = json.loads(tokens)
            self._client.loads(said["garmin"])
            self._library.display_name = said["display_name"] or None
        except Exception:
            raise SignInEnded from None

    @property
    def tokens(self) -> str:
        """As GarminSession.tokens."""
        return self._tokens

    async def refresh(self) -> SignedIn:
        """As RefreshableSession.refresh."""

        def work() -> SignedIn:
            heard = self._client.heard
            heard.begin()
            try:
                self._client.take_new_tokens()
            except Exception as error:
                ended = isinstance(error, GarminConnectAuthenticationError) and heard.status in (0, 400, 401, 403)
                raise (SignInEnded() if ended else _failure(heard, error)) from None
            fresh = _signed_in(self._client, self._library.display_name or "")
            self._tokens = fresh.tokens
            return fresh

        return await self._calls.run(work)

    async def activities(self, start: int, since: date, limit: int) -> list[Activity]:
        """As GarminSession.activities."""
        params = {"startDate": since.isoformat(), "start": str(start), "limit": str(limit)}
        return await self._ask(
            lambda: answers.activities(self._library.connectapi(self._library.garmin_connect_activities, params=params))
        )

    async def download_original(self, activity_id: str) -> Original:
        """As GarminSession.download_original."""

        def work() -> Original:
            kinds = Library.ActivityDownloadFormat
            content = self._download(activity_id, kinds.ORIGINAL)
            if content is not None:
                return _unzipped(content)
            for format, kind in (("tcx", kinds.TCX), ("gpx", kinds.GPX)):
                if content := self._download(activity_id, kind):
                    return Original(format=format, content=content)
            raise GarminRefused("there is no recording")

        return await self._ask(work)

    async def daily_metrics(self, day: date) -> list[DailyMetric]:
        """As GarminSession.daily_metrics."""

        def work() -> list[DailyMetric]:
            if not self._library.display_name:
                profile = self._library.connectapi("/userprofile-service/socialProfile")
                self._library.display_name = str(profile["displayName"])
            text = day.isoformat()
            summary = self._optional(lambda: self._library.get_user_summary(text))
            sleep = self._optional(lambda: self._library.get_sleep_data(text))
            offset = answers.zone_offset_of(summary, sleep)
            found = [
                *answers.of_summary(day, summary),
                *answers.of_sleep(day, sleep),
                *answers.of_hrv(day, self._optional(lambda: self._library.get_hrv_data(text))),
                *answers.of_weight(day, self._optional(lambda: self._library.get_daily_weigh_ins(text))),
            ]
            return [replace(one, zone_offset_minutes=offset) for one in found]

        return await self._ask(work)

    async def workouts(self, start: int, limit: int) -> list[Workout]:
        """As GarminSession.workouts."""
        return await self._ask(lambda: answers.workouts(self._library.get_workouts(start, limit)))

    async def upload_workout(self, workout: Mapping[str, Any]) -> str:
        """As GarminSession.upload_workout."""
        return await self._ask(lambda: str(int(self._library.upload_workout(dict(workout))["workoutId"])))

    async def schedule_workout(self, workout_id: str, day: date) -> None:
        """As GarminSession.schedule_workout."""
        await self._ask(lambda: self._library.schedule_workout(workout_id, day.isoformat()))

    async def delete_workout(self, workout_id: str) -> None:
        """As GarminSession.delete_workout."""
        await self._ask(lambda: self._optional(lambda: self._library.delete_workout(workout_id)))

    async def _ask(self, work: Callable[[], T]) -> T:
        """What `work` comes to, or what went wrong in words of ours."""

        def heard_work() -> T:
            heard = self._client.heard
            heard.begin()
            try:
                return work()
            except GarminRefused:
                raise
            except Exception as error:
                raise _failure(heard, error) from None

        return await self._calls.run(heard_work)

    def _optional(self, ask: Callable[[], T]) -> T | None:
        """What Garmin says; None: it has no such thing."""
        try:
            return ask()
        except Exception:
            if self._client.heard.status == 404:
                return None
            raise

    def _download(self, activity_id: str, kind: Any) -> bytes | None:
        return cast("bytes | None", self._optional(lambda: self._library.download_activity(activity_id, kind)))


class _Hearing:
    """A session of curl's as the library uses it to send a code; what comes back is heard."""

    def __init__(self, session: Any, heard: _Heard, *, is_json: bool) -> None:
        self._session = session
        self._heard = heard
        self._is_json = is_json
        self.cookies = session.cookies

    def post(self, *args: Any, **kwargs: Any) -> Any:
        response = self._session.post(*args, **kwargs)
        self._heard.hear(response)
        if self._is_json:
            try:
                response.json()
            except ValueError:
                self._heard.nonsense = True
        return response


def _signed_in(client: _Client, display_name: str) -> SignedIn:
    tokens = json.dumps({"garmin": client.dumps(), "display_name": display_name})
    return SignedIn(tokens=tokens, expire_time=_expire_time(client.di_token or ""))


def _frozen(client: _Client, state: object) -> dict[str, Any]:
    """A sign-in that waits for a code, as JSON: the library's own where it has one. Pairs with _thawed."""
    if isinstance(state, dict):
        return {"library": state}
    session, page = client._mfa_session, getattr(client, "_widget_last_resp", None)
    return {
        "flow": client._mfa_flow,
        "params": dict(client._mfa_login_params),
        "headers": dict(client._mfa_post_headers),
        "method": getattr(client, "_mfa_method", None),
        "service_url": getattr(client, "_mfa_service_url", None),
        "page": None if page is None else page.text,
        "as": str(getattr(session, "impersonate", None) or "chrome"),
        "cookies": [
            [one.name, one.value, one.domain, one.path] for one in getattr(session.cookies, "jar", session.cookies)
        ],
    }


def _thawed(client: _Client, state: dict[str, Any]) -> Any:
    """What `_frozen` was given, put into another client. Raises SignInLost."""
    if "library" in state:
        return state["library"]
    try:
        session: Any = cffi_requests.Session(impersonate=state["as"], timeout=30)
        for name, value, domain, path in state["cookies"]:
            session.cookies.set(name, value, domain=domain, path=path)
        client._mfa_session, client._mfa_flow = session, state["flow"]
        client._mfa_login_params, client._mfa_post_headers = state["params"], state["headers"]
        client._mfa_method, client._mfa_service_url = state["method"], state["service_url"]
        client._widget_last_resp = None if state["page"] is None else SimpleNamespace(text=state["page"])
    except Exception:  # of another version of ours
        raise SignInLost from None
    return None


def _refused_sign_in(heard: _Heard, error: Exception, no: Exception) -> Exception:
    """What a sign-in failed by; `no`: what Garmin's own no means."""
    _note(heard, error)
    if heard.has_ticket:  # the password did, and the tokens did not come
        return _failure(heard, error)
    if isinstance(error, GarminConnectTooManyRequestsError) or heard.status == 429:
        return RateLimited(_bounded(heard.retry_after, SIGN_IN_PAUSE))
    if not isinstance(error, GarminConnectAuthenticationError):
        return GarminAway()
    if isinstance(no, MfaWrong) and heard.nonsense:
        return GarminAnswer()
    if isinstance(no, MfaWrong) and (heard.status == 0 or heard.status >= 500):
        return GarminAway()
    return no


def _failure(heard: _Heard, error: Exception) -> Exception:
    """What an exception of the library's means, by what Garmin answered last."""
    if heard.refresh_wanted:
        return TokensExpired()
    _note(heard, error)
    if heard.status == 429:
        return RateLimited(_bounded(heard.retry_after, PAUSE))
    if heard.status == 0:
        return GarminAway()
    if heard.status >= 500:
        return GarminAway(_bounded(heard.retry_after, 15.0))
    if heard.status >= 400:
        return GarminRefused(f"Garmin answered {heard.status}.")
    return GarminAnswer("Garmin answered with what makes no sense here.")


def _note(heard: _Heard, error: Exception) -> None:
    logger().info("garmin did not do", status=heard.status, error=type(error).__name__)


def _unzipped(content: bytes) -> Original:
    """The recording in an archive. Raises GarminRefused for one that holds none, zipfile.BadZipFile for none."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            format = member.filename.rpartition(".")[2].lower()
            if format in _FORMATS:
                if member.file_size > MAX_ORIGINAL_BYTES:
                    raise GarminRefused("the recording is too large")
                with archive.open(member) as opened:
                    return Original(format=format, content=opened.read(MAX_ORIGINAL_BYTES))
    raise GarminRefused("there is no recording")


def _expire_time(token: str) -> datetime | None:
    """When an access token ends, as it says itself."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return datetime.fromtimestamp(int(claims["exp"]), UTC)
    except (LookupError, ValueError, TypeError, OverflowError, OSError):
        return None


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After header: seconds, or a date."""
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        try:
            return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):
            return None


def _bounded(seconds: float | None, otherwise: float) -> float:
    return min(max(1.0, otherwise if seconds is None else seconds), LONGEST_PAUSE)
