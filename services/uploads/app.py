"""Owns how the uploads service is put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
from satchel.uploads.v1 import uploads_pb2_grpc

from runtime.clock import utc_now
from runtime.config import Config
from runtime.database import database
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from runtime.mesh import SessionsClient, channel
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
from services.uploads.limits_domain import FILE, read_limits
from services.uploads.links import Links
from services.uploads.outbox_domain import Outbox, relaying
from services.uploads.outbox_store import OutboxStore, add
from services.uploads.servicer import UploadServicer
from services.uploads.streamed_domain import Streamed
from services.uploads.sweeps_domain import Sweeps
from services.uploads.uploads_domain import Uploads
from services.uploads.uploads_store import UploadStore


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds the uploads service to `server` for as long as the block runs."""
    limits = read_limits(config.upload_limits or FILE, read_tiers(config.tiers or TIERS))
    secret = mesh_secret(config.keys)
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(
            database(config.database_url, connections=config.database_connections, name="uploads")
        )
        blobs = await stack.enter_async_context(open_blobs(config.blobs, config.home))
        digests = stack.enter_context(hashing(blobs))
        sessions = SessionsClient(
            await stack.enter_async_context(channel(config.sessions_address)), ServiceTokens(secret, "uploads")
        )
        look = await stack.enter_async_context(relaying(OutboxStore(db), sessions.store_records, now=utc_now))
        store = UploadStore(db)
        links = Links(config.links, secret, limits.endings)
        uploads = Uploads(store, blobs, digests, limits, now=utc_now)
        streamed = Streamed(uploads, store, blobs, digests)
        outbox = Outbox(add, look, now=utc_now)
        finalizer = Finalizer(store, blobs, digests, links, outbox, now=utc_now)
        files = Files(store, blobs, links, outbox, now=utc_now)
        await stack.enter_async_context(finalizer.running())
        parsing = await stack.enter_async_context(activity_parsing())
        activities = Activities(store, uploads, digests, streamed, finalizer, parsing, links, outbox)
        sweeps = Sweeps(store, blobs, digests, now=utc_now)
        await stack.enter_async_context(sweeping(sweeps.round, config.sweep_interval))
        active = ActiveUploads(ActiveUploadStore(db), now=utc_now)
        servicer = UploadServicer(limits, uploads, streamed, finalizer, files, activities, active)
        uploads_pb2_grpc.add_UploadServiceServicer_to_server(servicer, server)
        yield
