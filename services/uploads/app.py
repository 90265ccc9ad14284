"""Owns how the uploads service is put together."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import grpc
from satchel.uploads.v1 import uploads_pb2_grpc

from runtime.backlogs import measured
from runtime.clock import utc_now
from runtime.config import Config
from runtime.database import database
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from runtime.mesh import SessionsClient, channel
from runtime.readiness import BLOBS, readiness_of
from runtime.reporting import reporting
from runtime.sweeping import sweeping
from runtime.tiers import FILE as TIERS
from runtime.tiers import read_tiers
from services.uploads.active_domain import ActiveUploads
from services.uploads.active_store import ActiveUploadStore
from services.uploads.activities_domain import Activities
from services.uploads.activity_parsing import activity_parsing
from services.uploads.blobs import open_blobs
from services.uploads.digests import hashing
from services.uploads.files_domain import Files
from services.uploads.finalizing_domain import Finalizer
from services.uploads.imports_domain import Imports
from services.uploads.limits_domain import FILE, read_limits
from services.uploads.links import Links
from services.uploads.metered_blobs import MeteredBlobs
from services.uploads.outbox_domain import Outbox, relaying
from services.uploads.outbox_store import OutboxStore, add
from services.uploads.servicer import UploadServicer
from services.uploads.spools import Spools
from services.uploads.streamed_domain import Streamed
from services.uploads.sweeps_domain import Sweeps
from services.uploads.uploads_domain import Uploads
from services.uploads.uploads_store import UploadStore
from services.uploads.wholes_domain import Wholes

# Seconds between two looks at whether the store of files answers; a bucket wants money for each.
BLOBS_INTERVAL: Final = 5.0


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds the uploads service to `server` for as long as the block runs."""
    limits = read_limits(config.upload_limits or FILE, read_tiers(config.tiers or TIERS))
    secret = mesh_secret(config.keys)
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(
            database(config.database_url, connections=config.database_connections, name="uploads")
        )
        blobs = MeteredBlobs(await stack.enter_async_context(open_blobs(config.blobs, config.home)))
        await stack.enter_async_context(readiness_of(server).telling(BLOBS, blobs.mark, interval=BLOBS_INTERVAL))
        digests = stack.enter_context(hashing(blobs))
        sessions = SessionsClient(
            await stack.enter_async_context(channel(config.sessions_address)), ServiceTokens(secret, "uploads")
        )
        waiting = OutboxStore(db)
        await stack.enter_async_context(measured("outbox", waiting.backlog, now=utc_now))
        look = await stack.enter_async_context(relaying(waiting, sessions.store_records, now=utc_now))
        outcomes = await stack.enter_async_context(reporting(config, "uploads"))
        store = UploadStore(db)
        links = Links(config.links, secret, limits.endings)
        uploads = Uploads(store, blobs, digests, limits, outcomes=outcomes, now=utc_now)
        streamed = Streamed(uploads, store, blobs, digests)
        outbox = Outbox(add, look, now=utc_now)
        finalizer = Finalizer(store, blobs, digests, links, outbox, outcomes=outcomes, now=utc_now)
        files = Files(store, blobs, links, outbox, now=utc_now)
        await stack.enter_async_context(finalizer.running())
        parsing = await stack.enter_async_context(activity_parsing())
        wholes = Wholes(store, blobs, uploads, links, outbox, outcomes=outcomes)
        activities = Activities(store, uploads, wholes, digests, streamed, finalizer, parsing, links, outbox)
        sweeps = Sweeps(store, blobs, digests, outcomes=outcomes, now=utc_now)
        await stack.enter_async_context(sweeping(sweeps.round, config.sweep_interval))
        imports = Imports(activities, Spools(config.home / "spool"), limits.archives, monotonic=time.monotonic)
        active = ActiveUploads(ActiveUploadStore(db), now=utc_now)
        servicer = UploadServicer(limits, uploads, streamed, finalizer, files, imports, active)
        uploads_pb2_grpc.add_UploadServiceServicer_to_server(servicer, server)
        yield
