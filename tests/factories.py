"""What tests are made of: phones with an account, and the things that phones hand over."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx

PASSWORD = "securepassword123"
PATIENCE = 10.0


@dataclass(frozen=True)
class Phone:
    """A signed-in phone that speaks JSON to the edge."""

    http: httpx.AsyncClient
    user_id: str
    email: str
    access_token: str
    refresh_token: str

    @classmethod
    async def signed_up(cls, http: httpx.AsyncClient, **account: Any) -> Phone:
        email = account.pop("email", f"{uuid4().hex}@example.com")
        request = {"email": email, "password": PASSWORD, **account}
        answer = await http.post("/v1/auth/signup", json=request)
        deadline = time.monotonic() + PATIENCE
        while answer.status_code == 503 and time.monotonic() < deadline:
            # On a machine that is busy with tests a service may miss its health checks; a phone comes again.
            await asyncio.sleep(0.1)
            answer = await http.post("/v1/auth/signup", json=request)
        assert answer.status_code == 201, answer.text
        body = answer.json()
        return cls(http, body["user"]["id"], email, body["access_token"], body["refresh_token"])

    @classmethod
    async def as_guest(cls, http: httpx.AsyncClient, **given: Any) -> Phone:
        """A phone whose user wants to try first."""
        answer = await http.post("/v1/auth/anonymous", json=given)
        assert answer.status_code == 201, answer.text
        body = answer.json()
        return cls(http, body["user"]["id"], "", body["access_token"], body["refresh_token"])

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.access_token}"}

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """For gRPC calls."""
        return (("authorization", f"Bearer {self.access_token}"),)

    async def call(self, verb: str, path: str, **request: Any) -> httpx.Response:
        """A REST call with the phone's token; `headers` add to it."""
        headers = {**self.headers, **request.pop("headers", {})}
        return await self.http.request(verb, path, headers=headers, **request)


def device_session(**given: Any) -> dict[str, Any]:
    """A session recorded on a bike."""
    return {
        "client_session_id": str(uuid4()),
        "device_type": "bike",
        "training_id": "intervals-4x4",
        "started_at": "2026-02-26T10:00:00Z",
        "ended_at": "2026-02-26T10:30:00Z",
        "total_duration_seconds": 1800,
        "total_distance_meters": 12500.5,
        "total_calories": 320,
        "avg_heart_rate": 142,
        "max_heart_rate": 171,
        "xp_earned": 50,
        "device_metrics": {"avg_power_watts": 185, "avg_cadence_rpm": 84.5},
        **given,
    }


def puzzle_session(**given: Any) -> dict[str, Any]:
    """The session of seed 004's example, under an id of its own."""
    return {
        "id": str(uuid4()),
        "timestamp": "2025-11-16T10:30:00Z",
        "duration": 900,
        "difficulty": "medium",
        "declutter_text": "Today I need to focus on...",
        "mistake_count": 2,
        "is_completed": True,
        "puzzle_id": 42,
        **given,
    }


def exercise_session(**given: Any) -> dict[str, Any]:
    """An exercise session as seed 002's phone sends it."""
    return {
        "exerciseId": "bird-dog",
        "startTime": "2026-02-26T10:00:00Z",
        "duration": 60,
        "repetitionCount": 10,
        "isCompleted": True,
        **given,
    }


def change(**given: Any) -> dict[str, Any]:
    """A page of a journal, new to the server, as a phone pushes it."""
    return {
        "domain": "journal",
        "id": str(uuid4()),
        "base_version": 0,
        "operation": "UPSERT",
        "data": {"text": "a page"},
        "client_time": "2026-02-26T10:00:00Z",
        **given,
    }


def filled(path: str, **given: str) -> str:
    """A path of the contract with its variables filled in: what is given, or something that is like it."""
    values = {
        **{name: str(uuid4()) for name in ("id", "conflict_id", "upload_id", "file_id", "name")},
        "tenant_id": "1",
        "domain": "journal",
        "chunk_index": "0",
        "provider": "nobody",
        "receipt_id": "del_x",
        "device_id": "phone-1",
        **given,
    }
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    return path
