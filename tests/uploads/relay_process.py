"""Relays the outbox in a process of its own, for tests that kill it: `python tests/uploads/relay_process.py`."""

import asyncio

from runtime.clock import utc_now
from runtime.config import from_environment
from runtime.database import database
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from runtime.mesh import SessionsClient, channel
from services.uploads.outbox_domain import relaying
from services.uploads.outbox_store import OutboxStore


async def relay() -> None:
    config = from_environment()
    async with (
        database(config.database_url, connections=2, name="uploads") as db,
        channel(config.sessions_address) as sessions,
    ):
        client = SessionsClient(sessions, ServiceTokens(mesh_secret(config.keys), "uploads"))
        async with relaying(OutboxStore(db), client.store_records, now=utc_now):
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(relay())
