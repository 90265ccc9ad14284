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
from runtime.mesh import STREAM_OPTIONS, Acting, SessionsClient, channel
from runtime.sweeping import sweeping
from services.garmin.accounts_domain import Accounts
from services.garmin.accounts_sessions import LinkedSessions
from services.garmin.accounts_store import AccountStore
from services.garmin.activities_domain import Activities
from services.garmin.activities_store import ActivityStore
from services.garmin.breaker import GuardedGarmin
from services.garmin.credentials import CredentialsClient
from services.garmin.garminconnect_client import GarminConnect, Hosts
from services.garmin.health_domain import Health
from services.garmin.jobs_domain import Jobs, JobType
from services.garmin.jobs_queue import Queue
from services.garmin.jobs_store import JobStore
from services.garmin.neighbours import Neighbours
from services.garmin.runs_domain import Runs
from services.garmin.servicer import GarminServicer
from services.garmin.workouts_domain import Workouts
from services.garmin.workouts_store import WorkoutStore

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
        queue = Queue(config.database_url, concurrency=config.garmin_jobs)
        job_store = JobStore(db, queue.defer, queue.cancel)
        jobs = Jobs(job_store, now=utc_now)
        uploads = await stack.enter_async_context(channel(config.uploads_address))
        others = await stack.enter_async_context(channel(config.sessions_address, STREAM_OPTIONS))
        neighbours = Neighbours(Acting(auth, tokens), auth, uploads, others)
        accounts = Accounts(
            garmin,
            store,
            credentials,
            secret,
            neighbours.make_known,
            patience=config.call_timeout * PATIENCE,
            stores_passwords=config.stores_garmin_passwords,
            ended=[jobs.end],
            erased=[job_store.erase],
            now=utc_now,
        )
        stack.push_async_callback(accounts.close)
        await stack.enter_async_context(sweeping(accounts.sweep, config.sweep_interval))
        health = Health(job_store, SessionsClient(others, tokens).store_records, now=utc_now)
        activities = Activities(job_store, ActivityStore(db), neighbours.add_activity, now=utc_now)
        workouts = Workouts(job_store, WorkoutStore(db), neighbours.plans)
        works = {JobType.ACTIVITIES: activities.bring, JobType.HEALTH: health.bring, JobType.WORKOUTS: workouts.send}
        runs = Runs(job_store, sessions.session, works, now=utc_now)
        garmin_pb2_grpc.add_GarminServiceServicer_to_server(GarminServicer(accounts, jobs), server)
        async with queue.working(runs.run, begin_due=runs.begin_due, forget=runs.forget, stop=runs.stop):
            yield
