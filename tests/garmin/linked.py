"""Phones whose users have linked an account at the stand-in, and what they wait for."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.conftest import Edge
from tests.factories import Phone
from tests.garmin.standin import Account, StandIn
from tests.polling import until
from tests.uploads.recordings import ACTIVITY, ENUM, SESSION, UINT16, UINT32, fit

STATUS = "/api/v1/garmin/sync/status"
FIT_EPOCH = datetime(1989, 12, 31, tzinfo=UTC)


@dataclass(frozen=True)
class Linked:
    """A phone, and its user's account at Garmin."""

    phone: Phone
    account: Account

    async def start(self, kind: str = "activities", **request: Any) -> str:
        """Begins a synchronization; its id."""
        answer = await self.phone.call("POST", f"/api/v1/garmin/{kind}", json=request)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["job_id"])

    async def status(self) -> dict[str, Any]:
        return await self.get(STATUS)

    async def until_over(self, seconds: float = 60) -> dict[str, Any]:
        """How it ended."""

        async def over() -> bool:
            return (await self.status())["status"] != "in_progress"

        await until(over, seconds)
        return await self.status()

    async def get(self, path: str, **params: Any) -> dict[str, Any]:
        """An answer, from whoever is back up by now."""
        deadline = time.monotonic() + 30
        while (answer := await self.phone.call("GET", path, params=params)).status_code == 503:
            assert time.monotonic() < deadline, answer.text
            await asyncio.sleep(0.1)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def synced(self, kind: str = "activities", **request: Any) -> dict[str, Any]:
        """A whole synchronization."""
        await self.start(kind, **request)
        return await self.until_over()

    async def syncs(self) -> list[dict[str, Any]]:
        return list((await self.get("/api/v1/garmin/syncs"))["syncs"])

    async def feed(self, domain: str) -> dict[str, dict[str, Any]]:
        """Live records of a domain by their ids."""
        found: dict[str, dict[str, Any]] = {}
        cursor = ""
        while True:
            params = {"domains": domain, "limit": 1000, **({"cursor": cursor} if cursor else {})}
            page = await self.get("/api/v1/sync/pull", **params)
            found.update({one["id"]: one["data"] for one in page["changes"] if not one["deleted"]})
            cursor = page["next_cursor"]
            if not page["has_more"]:
                return found

    async def activities(self, count: int, seconds: float = 30) -> dict[str, dict[str, Any]]:
        """So many activities in the feed, no more, once they are there."""

        async def there() -> bool:
            return len(await self.feed("activity")) >= count

        await until(there, seconds)
        found = await self.feed("activity")
        assert len(found) == count
        return found


async def linked(edge: Edge, standin: StandIn, **account: Any) -> Linked:
    """A new user with a new account there."""
    phone, theirs = await edge.phone(), standin.account(**account)
    request = {"username": theirs.username, "password": theirs.password}
    answer = await phone.call("POST", "/api/garmin/login", json=request)
    assert answer.status_code == 200, answer.text
    return Linked(phone, theirs)


def recording(start: datetime, *, seconds: int = 1800) -> bytes:
    """A small FIT activity that no other is like."""
    stamp = int((start - FIT_EPOCH).total_seconds())
    session = [
        (253, UINT32, stamp + seconds),
        (2, UINT32, stamp),
        (5, ENUM, 1),
        (8, UINT32, seconds * 1000),
        (11, UINT16, 300),
    ]
    return fit(ACTIVITY, (SESSION, session))


def add_runs(account: Account, count: int, **given: Any) -> list[str]:
    """So many runs, an hour apart, up to an hour ago; their ids at Garmin."""
    now = datetime.now(UTC).replace(microsecond=0)
    starts = [now - timedelta(hours=number + 1) for number in range(count)]
    return [account.add_activity(start, content=recording(start), **given) for start in starts]
