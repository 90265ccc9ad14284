"""Processes that are killed while accounts are synchronized: everything comes, once, and little is done twice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest

from deploy.parts import Child, running
from deploy.postgres import postgres_part
from runtime.config import Config
from runtime.server import serving
from services.garmin.activities_domain import AT_ONCE
from tests.conftest import ALL, Edge, config_for, envoy_for, service_part
from tests.garmin.linked import Linked, add_runs, linked
from tests.garmin.standin import StandIn, standing_in
from tests.garmin.test_jobs import PLAN
from tests.polling import until

RUNS = 24
# Of each replica: one for jobs, and one for housekeeping.
WORKERS = 2
# A worker that was killed is missed, and its jobs are looked for: without `let_silence_pass` that takes about half a
# minute.
PATIENCE = 90.0


@dataclass(frozen=True, kw_only=True)
class Stand:
    """A mesh with services that are processes, to be killed, among them each replica of the Garmin connector."""

    edge: Edge
    standin: StandIn
    directory: Path
    parts: dict[str, Child]

    @property
    def config(self) -> Config:
        return self.edge.mesh.config

    async def crash(self, name: str) -> None:
        """SIGKILL."""
        self.parts[name].kill()
        await self.parts[name].wait()

    async def rise(self, name: str) -> None:
        await self.parts[name].start()
        await self.parts[name].until_ready()

    def workers(self) -> list[int]:
        """Those that live, and those that nobody misses yet."""
        return [id for (id,) in self.query("SELECT id FROM garmin.procrastinate_workers")]

    def let_silence_pass(self, workers: list[int]) -> None:
        """As if nobody had heard of these workers, which are dead, for long enough to miss them."""
        later = "UPDATE garmin.procrastinate_workers SET last_heartbeat = now() - interval '1 minute'"
        self.query(f"{later} WHERE id = ANY(%s) RETURNING id", workers)

    def query(self, statement: str, *values: object) -> list[Any]:
        with psycopg.connect(self.config.database_url, autocommit=True) as connection:
            return connection.execute(statement, values).fetchall()

    def let_claims_pass(self) -> None:
        """As if the time was over for which nobody else tells what somebody died over."""
        self.query("UPDATE uploads.outbox SET due_time = now() RETURNING id")

    def runs(self, linked: Linked) -> int:
        """How often the user's last synchronization was begun or taken up."""
        found = self.query("SELECT runs FROM garmin.jobs WHERE user_id = %s", linked.phone.user_id)
        return int(found[0][0])


@asynccontextmanager
async def stand_of(
    config: Config, directory: Path, standin: StandIn, *names: str, replicas: int = 1
) -> AsyncIterator[Stand]:
    """Services of these `names` are processes, too; the others are in this one."""
    async with AsyncExitStack() as stack:
        parts = {}
        for name in names:
            parts[name] = await stack.enter_async_context(running(service_part(name, config, directory)))
        others = {name: service for name, service in ALL.items() if name not in (*names, "garmin")}
        await stack.enter_async_context(serving(config, others))
        for number in range(1, replicas + 1):
            part = service_part("garmin", config, directory, garmin_url=standin.url)
            name = f"garmin-{number}"
            part = replace(part, name=name, log=directory / f"{name}.log")
            parts[name] = await stack.enter_async_context(running(part))
        edge = await stack.enter_async_context(envoy_for(config, directory / "edge"))
        stand = Stand(edge=edge, standin=standin, directory=directory, parts=parts)

        async def all_there() -> bool:
            answer = await edge.http.get("/healthz")
            return answer.json().get("status") == "ok" and len(stand.workers()) == WORKERS * replicas

        await until(all_there, PATIENCE)
        yield stand


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with standing_in() as started:
        yield started


@pytest.fixture
async def stand(database_url: str, tmp_path: Path, standin: StandIn) -> AsyncIterator[Stand]:
    config = config_for(tmp_path / "home", database_url=database_url, share_address=True)
    async with stand_of(config, tmp_path, standin, replicas=2) as started:
        yield started


async def in_the_middle(ada: Linked, at_least: int = 5) -> None:
    """Returns when some items are done, and others are not."""

    async def some_done() -> bool:
        status = await ada.status()
        assert status["status"] == "in_progress", status
        return int(status["created"]) >= at_least

    await until(some_done, PATIENCE)


async def busy(stand: Stand) -> Linked:
    """A user whose activities are coming in slowly."""
    ada = await linked(stand.edge, stand.standin)
    add_runs(ada.account, RUNS)
    stand.standin.slow(0.25, where="download-service")
    await ada.start()
    await in_the_middle(ada)
    return ada


async def check_all_came_once(ada: Linked, *, interruptions: int) -> None:
    """Everything came; beyond what was under way when it was interrupted, nothing was fetched twice."""
    status = await ada.until_over(PATIENCE)
    assert (status["status"], status["failed"], status["progress"]) == ("completed", 0, 1.0), status
    assert status["created"] + status["duplicates"] == RUNS
    assert status["duplicates"] <= interruptions * AT_ONCE
    await ada.activities(RUNS, PATIENCE)
    assert len(ada.account.downloads) <= RUNS + interruptions * AT_ONCE
    files = (await ada.get("/api/v1/files", page_size=1000))["files"]
    assert len(files) == RUNS
    assert len(await ada.syncs()) == 1


async def test_all_replicas_are_killed_and_one_that_rises_goes_on(stand: Stand) -> None:
    ada = await busy(stand)
    for name in ("garmin-1", "garmin-2"):
        await stand.crash(name)
    stand.let_silence_pass(stand.workers())
    await stand.rise("garmin-1")
    await check_all_came_once(ada, interruptions=1)
    assert stand.runs(ada) == 2


async def test_the_replica_that_works_is_killed_and_the_other_takes_over(stand: Stand) -> None:
    ada = await busy(stand)
    workers = stand.workers()
    # Whichever it is: first the one, then, with the first back, the other.
    await stand.crash("garmin-1")
    await stand.rise("garmin-1")
    await stand.crash("garmin-2")
    stand.let_silence_pass(workers)
    await check_all_came_once(ada, interruptions=2)
    assert stand.runs(ada) >= 2


async def test_a_replica_that_is_told_to_stop_leaves_the_rest_to_the_other_at_once(stand: Stand) -> None:
    ada = await busy(stand)
    for name in ("garmin-1", "garmin-2"):
        code = await asyncio.wait_for(stopped(stand.parts[name]), 20)
        assert code == 0
        if name == "garmin-1":
            await stand.rise("garmin-1")
    await check_all_came_once(ada, interruptions=2)
    # Nothing had to be missed first.
    log = (stand.directory / "garmin-1.log").read_text() + (stand.directory / "garmin-2.log").read_text()
    assert "a job is taken up again" not in log


async def stopped(child: Child) -> int:
    assert child.pid is not None
    os.kill(child.pid, signal.SIGTERM)
    return await child.wait()


async def test_of_many_that_begin_one_at_two_replicas_one_does(stand: Stand) -> None:
    ada = await linked(stand.edge, stand.standin)
    stand.standin.slow(4, where="connectapi")
    answers = await asyncio.gather(
        *(ada.phone.call("POST", f"/api/v1/garmin/{kind}", json={}) for kind in ("activities", "health") * 10)
    )
    assert sorted(one.status_code for one in answers) == [200] + [409] * 19


async def test_uploads_and_sessions_are_away_for_a_while(database_url: str, tmp_path: Path, standin: StandIn) -> None:
    config = config_for(tmp_path / "home", database_url=database_url, share_address=True)
    async with stand_of(config, tmp_path, standin, "uploads", "sessions", replicas=2) as stand:
        ada = await busy(stand)
        await stand.crash("uploads")
        await stand.crash("sessions")
        assert (await ada.status())["status"] == "in_progress"
        for name in ("sessions", "uploads"):
            await stand.rise(name)
        stand.let_claims_pass()
        status = await ada.until_over(PATIENCE)
        assert (status["status"], status["failed"]) == ("completed", 0)
        assert status["created"] + status["duplicates"] == RUNS
        await ada.activities(RUNS, PATIENCE)


async def test_a_workout_that_was_sent_by_a_process_that_died_is_not_sent_again(stand: Stand) -> None:
    ada = await linked(stand.edge, stand.standin)
    for number in range(3):
        await ada.phone.call("POST", "/workout_plans", json={"id": f"plan-{number}", **PLAN, "name": str(number)})
    stand.standin.slow(1.0, where="workout-service/workout")
    await ada.start("workouts")

    async def asked() -> bool:
        return stand.standin.count("workout-service/workout") > stand.standin.count("workout-service/workouts")

    await until(asked)
    # Garmin has the request, and nobody will read the answer.
    for name in ("garmin-1", "garmin-2"):
        await stand.crash(name)
    stand.standin.well()
    stand.let_silence_pass(stand.workers())
    await stand.rise("garmin-1")
    status = await ada.until_over(PATIENCE)
    assert (status["status"], status["created"]) == ("completed", 3)
    assert sorted(one["workoutName"] for one in ada.account.workouts.values()) == ["0", "1", "2"]
    assert len(ada.account.schedule) <= 4


async def test_postgresql_is_away_for_a_while(tmp_path: Path, standin: StandIn) -> None:
    # Not in pytest's own directory, to which the account of PostgreSQL has no way.
    with TemporaryDirectory(prefix="satchel-") as directory:
        part = postgres_part(Path(directory, "postgres"), log=tmp_path / "postgres.log", settings={"fsync": "off"})
        config = config_for(tmp_path / "home", database_url=part.url)
        async with running(part) as server, stand_of(config, tmp_path, standin) as stand:
            ada = await busy(stand)
            os.kill(server.pid or 0, signal.SIGQUIT)
            await server.wait()
            await server.start()
            await server.until_ready()
            stand.let_claims_pass()
            await check_all_came_once(ada, interruptions=2)
