"""Owns simulated phones: when they have a network, how wrong their clocks are, and what they do with what they made."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final

import httpx

from clients.calls import Calls, Refused, Unreachable
from clients.demo.apps import App, Thing, spoiled

# Things a phone hands over in one call, and those it keeps for later; more are forgotten, oldest first.
BATCH: Final = 40
KEPT: Final = 400
# Seconds that a phone goes on trying to reach a server that is away.
PATIENCE: Final = 3600.0
MIB: Final = 1024 * 1024
_UNKNOWN: Final = 401
_REGISTERED: Final = 409
_FILM_HEAD: Final = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom"


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What a phone is like. Chances are from 0 to 1, of each time it has made something."""

    every: float = 6.0
    """Seconds between two things, about."""
    goes_offline: float = 0.05
    offline_for: float = 20.0
    """Seconds, about."""
    clock_ahead: timedelta = timedelta()
    """Of the phone's clock; negative: behind."""
    spoils: float = 0.0
    sends_twice: float = 0.05
    uploads: float = 0.0
    gives_uploads_up: float = 0.1


STEADY: Final = Habits()
COMMUTER: Final = Habits(every=4.0, goes_offline=0.3, offline_for=40.0)
SKEWED: Final = Habits(clock_ahead=timedelta(minutes=47), goes_offline=0.1)
BEHIND: Final = Habits(clock_ahead=timedelta(hours=-3))
BROKEN: Final = Habits(every=5.0, spoils=0.5)
IMPATIENT: Final = Habits(every=3.0, sends_twice=0.6)
FILMING: Final = Habits(every=12.0, uploads=0.5, gives_uploads_up=0.25)
KINDS: Final = (STEADY, COMMUTER, FILMING, SKEWED, BROKEN, IMPATIENT, BEHIND)


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a phone says of itself."""

    platform: str
    os_version: str
    app_version: str
    network: str


MODELS: Final = (
    Model(platform="ios", os_version="iOS 18.1", app_version="2.4.0", network="wifi"),
    Model(platform="android", os_version="Android 15", app_version="2.4.0", network="cellular"),
    Model(platform="android", os_version="Android 13", app_version="2.3.1", network="cellular"),
    Model(platform="ios", os_version="iOS 17.6", app_version="2.2.0", network="wifi"),
    Model(platform="android", os_version="Android 11", app_version="1.9.4", network="2g"),
)


class Tally:
    """What all phones together have done."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.signed_in = 0
        self.offline = 0
        self.uploading = 0
        self.signing_in = asyncio.Lock()
        """A password costs the server as much as a hundred other calls: one after the other."""

    def add(self, **counts: int) -> None:
        """Counts some of each."""
        self.counts.update(counts)


class Phone:
    """One phone, with or without a network."""

    def __init__(self, device_id: str, app: App, habits: Habits, model: Model, *, random: Random, tally: Tally) -> None:
        self._device_id = device_id
        self._app = app
        self._habits = habits
        self._model = model
        self._random = random
        self._tally = tally
        self._waiting: list[Thing] = []
        self._versions: dict[str, int] = {}

    async def live(self, url: str, email: str, password: str) -> None:
        """Makes things and hands them over, until it is cancelled. Raises Refused, Unreachable."""
        async with httpx.AsyncClient(base_url=url, timeout=30, headers=self._headers()) as http:
            calls = Calls(http, token="", patience=PATIENCE, say=lambda _: None)
            async with self._tally.signing_in:
                await _sign_in(calls, email, password)
            self._tally.signed_in += 1
            while True:
                await self._pause(self._habits.every)
                self._make()
                if self._chance(self._habits.goes_offline):
                    await self._offline()
                with suppress(Unreachable):
                    await self._hand_over(calls)
                    if self._chance(self._habits.uploads):
                        await self._film(calls)

    def _headers(self) -> dict[str, str]:
        return {
            "x-device-id": self._device_id,
            "x-platform": self._model.platform,
            "x-os-version": self._model.os_version,
            "x-app-version": self._model.app_version,
            "x-network-type": self._model.network,
        }

    def _now(self) -> datetime:
        return datetime.now(UTC) + self._habits.clock_ahead

    def _chance(self, of: float) -> bool:
        return self._random.random() < of

    async def _pause(self, about: float) -> None:
        await asyncio.sleep(self._random.uniform(0.5, 1.5) * about)

    def _make(self) -> None:
        thing = self._app.make(self._random, self._now())
        if "operation" in thing:
            # What was changed again before anybody saw it is one change.
            self._waiting = [one for one in self._waiting if one["id"] != thing["id"]]
            thing["base_version"] = self._versions.get(thing["id"], 0)
        self._waiting.append(spoiled(thing) if self._chance(self._habits.spoils) else thing)
        del self._waiting[:-KEPT]

    async def _offline(self) -> None:
        self._tally.offline += 1
        try:
            until = asyncio.get_running_loop().time() + self._habits.offline_for * self._random.uniform(0.5, 1.5)
            while asyncio.get_running_loop().time() < until:
                await self._pause(self._habits.every / 2)
                self._make()
        finally:
            self._tally.offline -= 1

    async def _hand_over(self, calls: Calls) -> None:
        while self._waiting:
            batch = self._waiting[:BATCH]
            for _ in range(1 + self._chance(self._habits.sends_twice)):
                await self._send(calls, batch)
            del self._waiting[: len(batch)]

    async def _send(self, calls: Calls, batch: list[Thing]) -> None:
        headers = {"x-client-time": self._now().isoformat().replace("+00:00", "Z")}
        try:
            answer = await calls.call("POST", self._app.path, json={self._app.field: batch}, headers=headers)
        except Refused:
            self._tally.add(refused=1)
            return
        outcome = self._app.outcome(answer.json())
        self._versions.update(outcome.versions)
        self._tally.add(syncs=1, stored=outcome.stored, conflicts=outcome.conflicts, rejected=outcome.rejected)

    async def _film(self, calls: Calls) -> None:
        """Uploads a film over a slow network, or gives up on the way."""
        size = self._random.randrange(2, 7) * MIB
        film = _FILM_HEAD + self._random.randbytes(size - len(_FILM_HEAD))
        asked = {
            "filename": f"film-{self._random.randrange(10_000)}.mp4",
            "total_size": size,
            "mime_type": "video/mp4",
            "file_hash": hashlib.sha256(film).hexdigest(),
        }
        self._tally.uploading += 1
        try:
            begun = (await calls.call("POST", "/api/v1/uploads/init", json=asked)).json()
            place, step = f"/api/v1/uploads/{begun['upload_id']}", begun["chunk_size"]
            gives_up = self._chance(self._habits.gives_uploads_up)
            for index in range(begun["total_chunks"]):
                await self._pause(1.5)
                if gives_up and index == begun["total_chunks"] // 2:
                    await calls.call("DELETE", place)
                    self._tally.add(given_up=1)
                    return
                chunk = film[index * step : (index + 1) * step]
                sums = {"x-chunk-checksum": hashlib.sha256(chunk).hexdigest()}
                await calls.call("POST", f"{place}/chunk/{index}", content=chunk, headers=sums)
            await calls.call("POST", f"{place}/finalize")
            self._tally.add(uploads=1)
        except Refused:
            self._tally.add(refused=1)
        finally:
            self._tally.uploading -= 1


async def _sign_in(calls: Calls, email: str, password: str) -> None:
    """Signs in; the first time, up."""
    try:
        await calls.sign_in(email, password)
    except Refused as refusal:
        if refusal.status != _UNKNOWN:
            raise
        await _sign_up(calls, email, password)
        await calls.sign_in(email, password)


async def _sign_up(calls: Calls, email: str, password: str) -> None:
    """Unless another phone of the account has."""
    try:
        await calls.call("POST", "/v1/auth/signup", json={"email": email, "password": password})
    except Refused as refusal:
        if refusal.status != _REGISTERED:
            raise
