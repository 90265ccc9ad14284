"""Owns calls to a Satchel: who signs them, what is tried again and for how long, and refusals in words."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import httpx

# Seconds: of the first pause and of the longest one between two tries of a call.
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 10.0
# Seconds for a server that has never answered: the URL is more likely wrong than the server away.
FIRST_PATIENCE: Final = 10.0
# Seconds without a byte from the server; it answers a finalize after ten, done or not.
TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)


class Refused(Exception):
    """The server has answered, and the same call will be answered so again."""

    def __init__(self, status: int, code: str, message: str, violations: Mapping[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.violations = violations
        """What of the request was wrong: fields, and why."""


class Unreachable(Exception):
    """The server was away for longer than we wait."""


class Passing(Exception):
    """The call failed in a way that may pass."""

    def __init__(self, why: str, pause: float | None = None, *, counts: bool = True) -> None:
        super().__init__(why)
        self.pause = pause
        """Seconds that the server asks for."""
        self.counts = counts
        """Whether patience runs out over it; not when the server is there and told us when to come."""


class Calls:
    """Calls with the caller's token, each repeated for as long as it may still work."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        token: str,
        patience: float,
        first_patience: float = FIRST_PATIENCE,
        say: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`patience` is how many seconds a call may fail before we give up, `first_patience` for a
        server that has never answered; `say` tells a person why it takes long.
        """
        self._http = http
        self._token = token
        self._refresh_token = ""
        self._renewing = asyncio.Lock()
        self._patience = patience
        self._first_patience = min(patience, first_patience)
        self._say = say
        self._now = now
        self._sleep = sleep
        self._heard = False
        self._not_before = 0.0
        self._said = ""

    async def sign_in(self, email: str, password: str) -> None:
        """From now on calls are made in the name of this account. Raises Refused, Unreachable."""
        answer = await self.call("POST", "/v1/auth/signin", signed=False, json={"email": email, "password": password})
        self._keep(answer.json())

    async def sign_out(self) -> None:
        """Ends the sign-in that `sign_in` began; whether the server hears of it is not important."""
        if self._refresh_token:
            with suppress(Passing, Refused, TimeoutError):
                async with asyncio.timeout(3):
                    await self.once("POST", "/v1/auth/signout", json={"scope": "this"})

    async def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        """A good answer. Raises Refused, Unreachable."""
        tries = Tries(self)
        while True:
            try:
                return await self.once(method, path, **request)
            except Passing as failure:
                await tries.pause(failure)

    async def once(self, method: str, path: str, *, signed: bool = True, **request: Any) -> httpx.Response:
        """A good answer at the first try. Raises Refused, Passing."""
        while (wait := self._not_before - self._now()) > 0:
            await self._sleep(wait)
        token = self._token if signed else ""
        headers = {**({"authorization": f"Bearer {token}"} if token else {}), **request.pop("headers", {})}
        try:
            answer = await self._http.request(method, path, headers=headers, **request)
        except httpx.TransportError as error:
            raise Passing(f"{self._http.base_url} cannot be reached ({_reason(error)})") from None
        self._heard = True
        if answer.is_success:
            self._said = ""
            return answer
        if answer.status_code == 429:
            pause = _retry_after(answer) or 1.0
            # For all calls: each that comes too early would send its bytes for nothing.
            self._not_before = max(self._not_before, self._now() + pause)
            raise Passing("the server takes no more calls at the moment", pause, counts=False)
        if answer.status_code == 408:
            raise Passing("the network is slow; fewer at a time (--parallel 1) may get through", _retry_after(answer))
        if answer.status_code >= 500:
            raise Passing(f"the server answers {answer.status_code}", _retry_after(answer))
        refusal = _refusal(answer)
        if refusal.code == "AUTH_002" and self._refresh_token:
            await self._renew(token)
            raise Passing("the token has expired", 0.0)
        raise refusal

    def patience(self) -> float:
        """Seconds that a call may go on failing."""
        return self._patience if self._heard else self._first_patience

    async def wait(self, seconds: float, why: str) -> None:
        """Waits, and says so when it is long enough to wonder."""
        if seconds >= 1 and why != self._said:
            self._said = why
            self._say(f"Waiting {seconds:.0f} s: {why}.")
        await self._sleep(seconds)

    def now(self) -> float:
        """Seconds on a clock that only goes on."""
        return self._now()

    async def _renew(self, expired: str) -> None:
        async with self._renewing:
            if self._token == expired:  # otherwise another call has done it
                asked = {"refresh_token": self._refresh_token}
                self._keep((await self.call("POST", "/v1/auth/refresh", signed=False, json=asked)).json())

    def _keep(self, tokens: dict[str, str]) -> None:
        self._token, self._refresh_token = tokens["access_token"], tokens["refresh_token"]


class Tries:
    """How long one thing has been failing."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._count = 0
        self._since: float | None = None

    def forget(self) -> None:
        """It got on since."""
        self._count, self._since = 0, None

    async def pause(self, failure: Passing) -> None:
        """Waits before the next try. Raises Unreachable when it has been failing for too long."""
        if failure.counts:
            now = self._calls.now()
            self._since = now if self._since is None else self._since
            left = self._since + self._calls.patience() - now
            if left <= 0:
                raise Unreachable(f"{failure}, and has for {now - self._since:.0f} s")
        else:
            left = math.inf
            self.forget()
        pause = failure.pause
        if pause is None:
            longest = min(FIRST_PAUSE * 2**self._count, LONGEST_PAUSE)
            pause = min(left, random.uniform(longest / 2, longest))  # noqa: S311  # so that many do not come back at once
        self._count += 1
        await self._calls.wait(pause, str(failure))


def _reason(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ConnectError):
        return "nobody answers there"
    if isinstance(error, httpx.TimeoutException):
        return "it takes too long"
    return "the connection was cut"


def _retry_after(answer: httpx.Response) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None


def _refusal(answer: httpx.Response) -> Refused:
    try:
        error = answer.json()["error"]
        violations = {detail["field"]: detail["reason"] for detail in error["details"]}
        return Refused(answer.status_code, error["code"], error["message"], violations)
    except (ValueError, KeyError, TypeError):
        message = f"{answer.url} answers {answer.status_code} and not as a Satchel does; is --url right?"
        return Refused(answer.status_code, "NOT_SATCHEL", message, {})
