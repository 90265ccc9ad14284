"""Owns how the sessions service is put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from satchel.sessions.v1 import (
    device_sessions_pb2_grpc,
    exercise_sessions_pb2_grpc,
    health_metrics_pb2_grpc,
    meta_pb2_grpc,
    puzzle_sessions_pb2_grpc,
    stats_pb2_grpc,
    sync_pb2_grpc,
    workout_plans_pb2_grpc,
)

from runtime.clock import utc_now
from runtime.config import Config
from runtime.database import database
from runtime.interceptors import failure_of
from runtime.sweeping import sweeping
from runtime.tiers import FILE, read_tiers
from services.sessions.adoptions_domain import Adoptions
from services.sessions.adoptions_store import AdoptionStore
from services.sessions.conflicts_domain import Conflicts
from services.sessions.conflicts_store import ConflictStore
from services.sessions.device_sessions_domain import DeviceSessions
from services.sessions.device_sessions_servicer import DeviceSessionServicer
from services.sessions.domains import Domains
from services.sessions.erasures_domain import Erasures
from services.sessions.erasures_store import ErasureStore
from services.sessions.exercises_domain import Catalogue, ExerciseSessions
from services.sessions.exercises_servicer import ExerciseSessionServicer
from services.sessions.exports_domain import Exports
from services.sessions.feed_store import FeedStore
from services.sessions.live import Live
from services.sessions.meta_domain import AppVersions, Discovery
from services.sessions.meta_servicer import MetaServicer
from services.sessions.meta_store import AppVersionStore
from services.sessions.metrics_domain import HealthMetrics
from services.sessions.metrics_servicer import HealthMetricServicer
from services.sessions.metrics_store import MetricStore
from services.sessions.plans_domain import WorkoutPlans
from services.sessions.plans_servicer import WorkoutPlanServicer
from services.sessions.plans_store import PlanStore
from services.sessions.puzzles_domain import PuzzleRoom, PuzzleSessions
from services.sessions.puzzles_servicer import PuzzleSessionServicer
from services.sessions.records_store import RecordStore
from services.sessions.schemas import Schemas
from services.sessions.stats_domain import UserStats
from services.sessions.stats_servicer import StatsServicer
from services.sessions.stats_store import StatsStore
from services.sessions.stored_records_domain import StoredRecords
from services.sessions.streams_domain import Streams
from services.sessions.streams_messages import StreamLimits
from services.sessions.sweeps_domain import Sweeps
from services.sessions.sweeps_store import SweepStore
from services.sessions.sync_domain import Sync
from services.sessions.sync_servicer import SyncServicer


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds the sessions service to `server` for as long as the block runs."""
    schemas = Schemas(config.domains)
    async with database(config.database_url, connections=config.database_connections, name="sessions") as db:
        feeds = FeedStore(db)
        limits = StreamLimits(
            per_user=config.streams_per_user, idle=config.stream_idle_timeout, lifetime=config.stream_lifetime
        )
        live = Live(limits, feeds)
        store = RecordStore(db, schemas.default_policy, committed=live.committed)
        domains = Domains(schemas, Catalogue())
        puzzle_room = PuzzleRoom(read_tiers(config.tiers or FILE), free_per_day=config.free_puzzles_per_day)
        exercises = ExerciseSessions(store, domains, now=utc_now)
        puzzles = PuzzleSessions(store, domains, puzzle_room, now=utc_now)
        devices = DeviceSessions(store, domains, now=utc_now)
        stats = UserStats(store, StatsStore(db), domains, now=utc_now)
        sync = Sync(store, feeds, domains, puzzle_room, now=utc_now)
        conflicts = Conflicts(store, ConflictStore(db), domains, now=utc_now)
        exports = Exports(feeds, ConflictStore(db), now=utc_now)
        erasures = Erasures(ErasureStore(db), now=utc_now, committed=live.committed)
        adoptions = Adoptions(
            AdoptionStore(db, schemas.default_policy, committed=live.committed), ErasureStore(db), now=utc_now
        )
        stored_records = StoredRecords(store, domains, now=utc_now)
        versions = AppVersions(AppVersionStore(db), now=utc_now)
        streams = Streams(live, sync, conflicts, versions, now=utc_now, failure_of=failure_of)
        exercise_sessions_pb2_grpc.add_ExerciseSessionServiceServicer_to_server(
            ExerciseSessionServicer(exercises), server
        )
        puzzle_sessions_pb2_grpc.add_PuzzleSessionServiceServicer_to_server(PuzzleSessionServicer(puzzles), server)
        device_sessions_pb2_grpc.add_DeviceSessionServiceServicer_to_server(DeviceSessionServicer(devices), server)
        stats_pb2_grpc.add_StatsServiceServicer_to_server(StatsServicer(stats), server)
        sync_pb2_grpc.add_SyncServiceServicer_to_server(
            SyncServicer(sync, conflicts, streams, exports, erasures, stored_records, adoptions), server
        )
        meta_pb2_grpc.add_MetaServiceServicer_to_server(MetaServicer(Discovery(schemas), versions), server)
        metrics = HealthMetrics(store, MetricStore(db), domains, now=utc_now)
        health_metrics_pb2_grpc.add_HealthMetricServiceServicer_to_server(HealthMetricServicer(metrics), server)
        plans = WorkoutPlans(store, PlanStore(db), domains, now=utc_now)
        workout_plans_pb2_grpc.add_WorkoutPlanServiceServicer_to_server(WorkoutPlanServicer(plans), server)
        sweeps = Sweeps(SweepStore(db), now=utc_now)
        async with live.running(config.redis_url), sweeping(sweeps.round, config.sweep_interval):
            yield
