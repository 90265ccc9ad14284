"""Owns how the Garmin connector is put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
from satchel.garmin.v1 import garmin_pb2_grpc

from runtime.clock import utc_now
from runtime.config import Config
from runtime.database import database
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from runtime.mesh import channel
from runtime.sweeping import sweeping
from services.garmin.accounts_domain import Accounts
from services.garmin.accounts_sessions import LinkedSessions
from services.garmin.accounts_store import AccountStore
from services.garmin.breaker import GuardedGarmin
from services.garmin.credentials import CredentialsClient
from services.garmin.garminconnect_client import GarminConnect, Hosts
from services.garmin.servicer import GarminServicer

# Of what a call may take: whoever asks for a sign-in that takes longer is told so while there is time.
PATIENCE = 0.8


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds the Garmin connector to `server` for as long as the block runs."""
    secret = mesh_secret(config.keys)
    tokens = ServiceTokens(secret, "garmin")
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(
            database(config.database_url, connections=config.database_connections, name="garmin")
        )
        auth = await stack.enter_async_context(channel(config.auth_address))
        store, credentials = AccountStore(db), CredentialsClient(auth, tokens)
        garmin = GuardedGarmin(GarminConnect(Hosts(domain=config.garmin_domain, url=config.garmin_url)))
        sessions = LinkedSessions(garmin, store, credentials, now=utc_now)
        stack.push_async_callback(sessions.close)
        accounts = Accounts(
            garmin,
            store,
            credentials,
            secret,
            patience=config.call_timeout * PATIENCE,
            stores_passwords=config.stores_garmin_passwords,
            ended=[],
            now=utc_now,
        )
        stack.push_async_callback(accounts.close)
        await stack.enter_async_context(sweeping(accounts.sweep, config.sweep_interval))
        garmin_pb2_grpc.add_GarminServiceServicer_to_server(GarminServicer(accounts), server)
        yield
