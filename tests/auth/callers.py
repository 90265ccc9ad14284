"""Callers that are no phones: services of the mesh."""

from __future__ import annotations

from typing import Any

import httpx

from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from tests.conftest import Edge


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def service_headers(edge: Edge, name: str = "garmin") -> dict[str, str]:
    """What a service of the mesh calls with."""
    return bearer(ServiceTokens(mesh_secret(edge.mesh.config.keys), name).current())


async def as_service(edge: Edge, verb: str, path: str, **request: Any) -> httpx.Response:
    return await edge.http.request(verb, path, headers=service_headers(edge), **request)
