"""Garmin, as far as the connector knows it: a real HTTP server with accounts, tokens that end, and bad days.

Every host of Garmin's is a first segment of its paths (`SATCHEL_GARMIN_URL` sends the connector here), so the library
in between is the real one, from its sign-in to its downloads. Tests turn the knobs of a `StandIn`; what they change is
seen by the next request. `python -m tests.garmin.standin PORT` runs one by itself, with an account to try.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

SAMPLES = Path(__file__).parent.parent / "uploads" / "samples"
SSO, TOKENS, API = "/sso.", "/diauth.", "/connectapi."
CODE = "123456"


@dataclass
class Account:
    """Somebody at Garmin. Everything may be changed at any time."""

    username: str
    password: str
    mfa: bool = False
    """Whether a sign-in wants a code."""
    code: str = CODE
    token_seconds: float = 24 * 3600
    """How long an access token lives; the library refreshes one that has less than 900 seconds left."""
    unknown_fields: bool = True
    """Whether answers carry what nobody has heard of yet."""
    activities: list[dict[str, Any]] = field(default_factory=list)
    """As Garmin lists them, newest first."""
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Originals: format and content by the activity's id."""
    exports: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """What Garmin makes of an activity without an original: by the id and gpx or tcx."""
    days: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By calendar date: summary, sleep, hrv and weight, each as Garmin answers it."""
    workouts: dict[str, dict[str, Any]] = field(default_factory=dict)
    schedule: list[tuple[str, str]] = field(default_factory=list)
    """Workout id and calendar date."""
    access: dict[str, float] = field(default_factory=dict)
    """Access tokens that live, and when they end."""
    refresh: set[str] = field(default_factory=set)
    """Refresh tokens that were not used."""
    sign_ins: int = 0
    refreshes: int = 0
    downloads: list[str] = field(default_factory=list)

    def add_activity(
        self,
        start: datetime,
        *,
        name: str = "A run",
        kind: str = "running",
        content: bytes | None = None,
        format: str = "fit",
        **given: Any,
    ) -> str:
        """An activity, with an original unless `content` is empty; returns its id."""
        id = str(given.pop("activityId", 15_000_000_000 + len(self.activities)))
        if content is None:
            content = (SAMPLES / "garmin-fenix-5-run.fit").read_bytes()
        if content:
            self.files[id] = (format, content)
        stamp = start.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        self.activities.append(
            {
                "activityId": int(id),
                "activityName": name,
                "description": None,
                "startTimeLocal": stamp,
                "startTimeGMT": stamp,
                "activityType": {"typeId": 1, "typeKey": kind, "parentTypeId": 17, "isHidden": False},
                "distance": 5012.5,
                "duration": 1800.25,
                "averageHR": 142.0,
                **given,
            }
        )
        self.activities.sort(key=lambda one: str(one["startTimeGMT"]), reverse=True)
        return id

    def add_day(self, day: date, **given: Any) -> None:
        """A day with something of everything; `given` replaces summary, sleep, hrv or weight."""
        midnight = int(datetime.combine(day, datetime.min.time(), UTC).timestamp() * 1000)
        self.days[day.isoformat()] = {
            "summary": {
                "calendarDate": day.isoformat(),
                "totalSteps": 10_432,
                "dailyStepGoal": 9000,
                "totalDistanceMeters": 8321,
                "minHeartRate": 44,
                "maxHeartRate": 171,
                "restingHeartRate": 48,
                "averageStressLevel": 31,
                "maxStressLevel": 88,
                "bodyBatteryHighestValue": 95,
                "bodyBatteryLowestValue": 21,
            },
            "sleep": {
                "dailySleepDTO": {
                    "calendarDate": day.isoformat(),
                    "sleepTimeSeconds": 27_000,
                    "sleepStartTimestampGMT": midnight - 3_600_000,
                    "sleepEndTimestampGMT": midnight + 23_400_000,
                    "deepSleepSeconds": 5400,
                    "lightSleepSeconds": 14_400,
                    "remSleepSeconds": 7200,
                    "awakeSleepSeconds": 900,
                }
            },
            "hrv": {"hrvSummary": {"calendarDate": day.isoformat(), "lastNightAvg": 61, "weeklyAvg": 58}},
            "weight": {
                "dateWeightList": [
                    {"weight": 71_350.0, "bmi": 22.4, "bodyFat": 15.1, "timestampGMT": midnight + 25_200_000}
                ]
            },
            **given,
        }

    def revoke(self) -> None:
        """Ends every token, as when its owner changes the password."""
        self.access.clear()
        self.refresh.clear()

    def expire(self) -> None:
        """Ends the access tokens; who has a refresh token goes on."""
        self.access.clear()


@dataclass
class Trouble:
    """How some of the requests go wrong."""

    where: str
    """What the path has in it, the host included: `SSO`, `TOKENS`, `API`, or a piece of the path."""
    status: int = 0
    """Answered instead; 0: the real answer."""
    retry_after: str = ""
    body: bytes | None = None
    """Answered instead, with 200 unless `status` says otherwise."""
    seconds: float = 0
    """To wait before anything is answered."""
    hang_up: bool = False
    """The connection is closed without an answer."""
    times: int | None = None
    """Requests that it lasts for; None: until it is removed."""


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Request(NamedTuple):
    method: str
    path: str
    """With the host as the first segment and no query."""
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body.decode(), keep_blank_values=True).items()}

    def json(self) -> Any:
        return json.loads(self.body)


class StandIn:
    """The server and its knobs."""

    def __init__(self) -> None:
        self.url = ""
        self.accounts: dict[str, Account] = {}
        self.troubles: list[Trouble] = []
        self.requests: list[tuple[str, str]] = []
        """Method and path of everything that was asked."""
        self.mobile_sign_in = True
        """Off: the door for apps answers 429, as Garmin's often does, and the library goes through its web widget."""
        self.rotates = True
        """Whether a refresh token is good for one use."""
        self._lock = threading.RLock()
        self._sign_ins: dict[str, Account] = {}
        self._tickets: dict[str, Account] = {}
        self._zips: dict[tuple[str, int], bytes] = {}

    def account(self, username: str = "", password: str = "", **given: Any) -> Account:
        """A new account."""
        new = Account(username or f"{uuid4().hex}@garmin.example", password or f"pw-{uuid4().hex}", **given)
        self.accounts[new.username] = new
        return new

    def trouble(self, where: str, **given: Any) -> Trouble:
        """Goes wrong from the next request on."""
        new = Trouble(where, **given)
        self.troubles.insert(0, new)
        return new

    def limit(self, where: str = "/", retry_after: str = "120", times: int | None = None) -> Trouble:
        """429."""
        return self.trouble(where, status=429, retry_after=retry_after, times=times)

    def down(self, where: str = "/") -> Trouble:
        """Nobody answers."""
        return self.trouble(where, hang_up=True)

    def slow(self, seconds: float, where: str = "/") -> Trouble:
        """Everything takes long."""
        return self.trouble(where, seconds=seconds)

    def nonsense(self, where: str = API) -> Trouble:
        """A page of a proxy's where JSON should be."""
        return self.trouble(where, body=b"<html><title>Attention Required!</title>")

    def well(self) -> None:
        """Nothing goes wrong any more."""
        self.troubles.clear()

    def count(self, piece: str) -> int:
        """How many requests had this in their path."""
        return sum(piece in path for _, path in list(self.requests))

    def answer(self, request: Request) -> Answer | None:
        """What a request gets; None: it is hung up on."""
        with self._lock:
            self.requests.append((request.method, request.path))
            trouble = next((one for one in self.troubles if one.where in request.path and one.times != 0), None)
            if trouble is not None and trouble.times is not None:
                trouble.times -= 1
        if trouble is not None:
            time.sleep(trouble.seconds)
            if trouble.hang_up:
                return None
            if trouble.status or trouble.body is not None:
                waits = (("Retry-After", trouble.retry_after),) if trouble.retry_after else ()
                return Answer(trouble.status or 200, trouble.body or b'{"message": "no"}', waits)
        host, _, path = request.path[1:].partition("/")
        with self._lock:
            if host.startswith("sso."):
                return self._sso(request, f"/{path}")
            if host.startswith("diauth."):
                return self._tokens(request)
            if host.startswith("connectapi."):
                return self._api(request, f"/{path}")
        return Answer(404, b"{}")

    # Sign-in

    def _sso(self, request: Request, path: str) -> Answer:
        if path in ("/mobile/api/login", "/portal/api/login"):
            if not self.mobile_sign_in:
                return _json({"error": {"status-code": "429"}}, 429)
            given = request.json()
            return self._signed_in(given["username"], given["password"], _json_outcome)
        if path.endswith("/api/mfa/verifyCode"):
            if not self.mobile_sign_in:
                return _json({"error": {"status-code": "429"}}, 429)
            return self._coded(request, request.json()["mfaVerificationCode"], _json_outcome)
        if path == "/sso/signin" and request.method == "POST":
            return self._signed_in(request.form["username"], request.form["password"], _page_outcome)
        if path == "/sso/verifyMFA/loginEnterMfaCode":
            return self._coded(request, request.form["mfa-code"], _page_outcome)
        if request.method == "GET":
            return _page("GARMIN Authentication Application")
        return Answer(404, b"{}")

    def _signed_in(self, username: str, password: str, outcome: Callable[..., Answer]) -> Answer:
        account = self.accounts.get(username)
        if account is None or account.password != password:
            return outcome("INVALID_USERNAME_PASSWORD")
        account.sign_ins += 1
        if account.mfa:
            key = uuid4().hex
            self._sign_ins[key] = account
            return outcome("MFA_REQUIRED", cookie=key)
        return outcome("SUCCESSFUL", ticket=self._ticket(account))

    def _coded(self, request: Request, code: str, outcome: Callable[..., Answer]) -> Answer:
        cookies = dict(part.strip().partition("=")[::2] for part in request.headers.get("cookie", "").split(";"))
        account = self._sign_ins.get(cookies.get("GARMIN-SSO", ""))
        if account is None:
            return outcome("SESSION_EXPIRED")
        if code != account.code:
            return outcome("MFA_CODE_INVALID")
        del self._sign_ins[cookies["GARMIN-SSO"]]
        return outcome("SUCCESSFUL", ticket=self._ticket(account))

    def _ticket(self, account: Account) -> str:
        ticket = f"ST-{uuid4().hex}-sso"
        self._tickets[ticket] = account
        return ticket

    # Tokens

    def _tokens(self, request: Request) -> Answer:
        form = request.form
        if "service_ticket" in form:
            account = self._tickets.pop(form["service_ticket"], None)
        else:
            token = form["refresh_token"]
            account = next((one for one in self.accounts.values() if token in one.refresh), None)
            if account is not None:
                account.refreshes += 1
                if self.rotates:
                    account.refresh.discard(token)
        if account is None:
            return _json({"error": "invalid_grant"}, 400)
        ends = time.time() + account.token_seconds
        claims = {"exp": int(ends), "client_id": form["client_id"], "jti": uuid4().hex}
        access = ".".join(map(_coded64, ({"alg": "RS256"}, claims, "signature")))
        refresh = f"refresh-{uuid4().hex}"
        account.access[access] = ends
        account.refresh.add(refresh)
        return _json({"access_token": access, "refresh_token": refresh, "token_type": "Bearer", "surprise": [1]})

    # The API

    def _api(self, request: Request, path: str) -> Answer:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        account = next((one for one in self.accounts.values() if token in one.access), None)
        if account is None or account.access[token] < time.time():
            return _json({"message": "Token is not active"}, 401)
        first, *rest = path[1:].split("/")
        found = _SERVICES.get(first)
        answer = found(self, account, request, rest) if found else None
        if answer is None:
            return _json({"message": "NotFoundException"}, 404)
        return answer

    def _profile(self, account: Account, request: Request, rest: list[str]) -> Answer:
        if rest[-1] == "socialProfile":
            return _json({"displayName": account.username.partition("@")[0], "fullName": "Ada", "profileId": 1})
        return _json({"userData": {"measurementSystem": "metric"}})

    def _list(self, account: Account, request: Request, rest: list[str]) -> Answer:
        start, limit = int(request.query.get("start", 0)), int(request.query.get("limit", 20))
        since = request.query.get("startDate", "")
        found = [one for one in account.activities if str(one.get("startTimeLocal", "9"))[:10] >= since]
        extra: dict[str, Any] = {"somethingNew": {"nested": [1, None]}} if account.unknown_fields else {}
        return _json([{**one, **extra} for one in found[start : start + limit]])

    def _download(self, account: Account, request: Request, rest: list[str]) -> Answer | None:
        id = rest[-1]
        account.downloads.append(id)
        if rest[0] == "files":
            if id not in account.files:
                return None
            format, content = account.files[id]
            key = (f"{id}.{format}", hash(content))
            if key not in self._zips:
                self._zips[key] = zipped(f"{id}_ACTIVITY.{format}", content)
            return Answer(200, self._zips[key], (("Content-Type", "application/zip"),))
        content = account.exports.get((id, rest[1]), b"")
        return Answer(200, content, (("Content-Type", "application/xml"),)) if content else None

    def _day(self, account: Account, day: str, part: str) -> Answer | None:
        given = account.days.get(day, {}).get(part)
        if given is None:
            # Garmin has a summary of every day, and nothing to say about the rest.
            return _json({"calendarDate": day, "totalSteps": None}) if part == "summary" else Answer(204, b"")
        return _json({**given, "somethingNew": True} if account.unknown_fields else given)

    def _summary(self, account: Account, request: Request, rest: list[str]) -> Answer | None:
        return self._day(account, request.query["calendarDate"], "summary")

    def _wellness(self, account: Account, request: Request, rest: list[str]) -> Answer | None:
        return self._day(account, request.query["date"], "sleep") if "dailySleepData" in rest else None

    def _hrv(self, account: Account, request: Request, rest: list[str]) -> Answer | None:
        return self._day(account, rest[-1], "hrv")

    def _weight(self, account: Account, request: Request, rest: list[str]) -> Answer | None:
        return self._day(account, rest[-1], "weight")

    def _workouts(self, account: Account, request: Request, rest: list[str]) -> Answer | None:
        if rest == ["workouts"]:
            start, limit = int(request.query.get("start", 0)), int(request.query.get("limit", 20))
            found = [{**one, "workoutId": int(id)} for id, one in account.workouts.items()]
            return _json(found[start : start + limit])
        if rest == ["workout"] and request.method == "POST":
            id = str(900_000_000 + len(account.workouts) + len(self.requests))
            account.workouts[id] = request.json()
            return _json({**request.json(), "workoutId": int(id), "ownerId": 1})
        if rest[0] == "schedule" and rest[1] in account.workouts:
            account.schedule.append((rest[1], request.json()["date"]))
            return _json({"workoutScheduleId": 1})
        if rest[0] == "workout" and request.method == "DELETE" and account.workouts.pop(rest[1], None) is not None:
            return Answer(204, b"")
        return None


_SERVICES: dict[str, Callable[[StandIn, Account, Request, list[str]], Answer | None]] = {
    "userprofile-service": StandIn._profile,
    "activitylist-service": StandIn._list,
    "download-service": StandIn._download,
    "usersummary-service": StandIn._summary,
    "wellness-service": StandIn._wellness,
    "hrv-service": StandIn._hrv,
    "weight-service": StandIn._weight,
    "workout-service": StandIn._workouts,
}


def zipped(name: str, content: bytes) -> bytes:
    """An archive of one file, as Garmin hands originals out."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def _json(content: Any, status: int = 200, *headers: tuple[str, str]) -> Answer:
    return Answer(status, json.dumps(content).encode(), (("Content-Type", "application/json"), *headers))


def _page(title: str, *headers: tuple[str, str], ticket: str = "") -> Answer:
    link = f'<a href="embed?ticket={ticket}">' if ticket else ""
    text = f'<html><title>{title}</title><input name="_csrf" value="{uuid4().hex}">{link}</html>'
    return Answer(200, text.encode(), (("Content-Type", "text/html"), *headers))


def _json_outcome(kind: str, *, ticket: str = "", cookie: str = "") -> Answer:
    body: dict[str, Any] = {"responseStatus": {"type": kind}, "somethingNew": {}}
    if ticket:
        body["serviceTicketId"] = ticket
    if cookie:
        body["customerMfaInfo"] = {"mfaLastMethodUsed": "email"}
    return _json(body, 200 if ticket or cookie else 401, *_cookie(cookie))


def _page_outcome(kind: str, *, ticket: str = "", cookie: str = "") -> Answer:
    titles = {
        "SUCCESSFUL": "Success",
        "MFA_REQUIRED": "Enter MFA code for login",
        "INVALID_USERNAME_PASSWORD": "Invalid sign in",
        "MFA_CODE_INVALID": "Invalid MFA code",
        "SESSION_EXPIRED": "Session expired",
    }
    return _page(titles[kind], *_cookie(cookie), ticket=ticket)


def _cookie(value: str) -> tuple[tuple[str, str], ...]:
    return (("Set-Cookie", f"GARMIN-SSO={value}; Path=/; HttpOnly"),) if value else ()


def _coded64(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    standin: StandIn

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        request = Request(
            self.command,
            url.path,
            {name: values[0] for name, values in parse_qs(url.query).items()},
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(int(self.headers.get("Content-Length") or 0)),
        )
        answer = self.standin.answer(request)
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body if answer.status != 204 else b"")

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up in the middle is no news."""


@contextmanager
def standing_in(port: int = 0) -> Iterator[StandIn]:
    """A stand-in on a free port, for as long as the block runs."""
    standin = StandIn()
    handler = type("Handler", (_Handler,), {"standin": standin})
    server = _Server(("127.0.0.1", port), handler)
    standin.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield standin
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """Stands in until it is interrupted, with an account that has a few activities and days."""
    with standing_in(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as standin:
        account = standin.account("ada@garmin.example", "garmin-password")
        today = datetime.now(UTC)
        for days in range(5):
            account.add_activity(today.replace(hour=7, day=max(1, today.day - days)), name=f"Run {days}")
        account.add_day(today.date())
        print(f"SATCHEL_GARMIN_URL={standin.url}  {account.username}  {account.password}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
