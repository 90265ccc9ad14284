"""Owns how the sessions service is put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from satchel.sessions.v1 import (
    device_sessions_pb2_grpc,
    exercise_sessions_pb2_grpc,
    puzzle_sessions_pb2_grpc,
    stats_pb2_grpc,
)

from runtime.clock import utc_now
from runtime.config import Config
from runtime.database import database
from services.sessions.device_sessions_domain import DeviceSessions
from services.sessions.device_sessions_servicer import DeviceSessionServicer
from services.sessions.exercises_domain import Catalogue, ExerciseSessions
from services.sessions.exercises_servicer import ExerciseSessionServicer
from services.sessions.puzzles_domain import PuzzleSessions
from services.sessions.puzzles_servicer import PuzzleSessionServicer
from services.sessions.records_store import RecordStore
from services.sessions.schemas import Schemas
from services.sessions.stats_domain import UserStats
from services.sessions.stats_servicer import StatsServicer
from services.sessions.stats_store import StatsStore


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds the sessions service to `server` for as long as the block runs."""
    async with database(config.database_url, connections=config.database_connections, name="sessions") as db:
        store, schemas = RecordStore(db), Schemas()
        exercises = ExerciseSessions(store, schemas, Catalogue(), now=utc_now)
        puzzles = PuzzleSessions(store, schemas, free_per_day=config.free_puzzles_per_day, now=utc_now)
        devices = DeviceSessions(store, schemas, now=utc_now)
        stats = UserStats(store, StatsStore(db), schemas, now=utc_now)
        exercise_sessions_pb2_grpc.add_ExerciseSessionServiceServicer_to_server(
            ExerciseSessionServicer(exercises), server
        )
        puzzle_sessions_pb2_grpc.add_PuzzleSessionServiceServicer_to_server(PuzzleSessionServicer(puzzles), server)
        device_sessions_pb2_grpc.add_DeviceSessionServiceServicer_to_server(DeviceSessionServicer(devices), server)
        stats_pb2_grpc.add_StatsServiceServicer_to_server(StatsServicer(stats), server)
        yield
