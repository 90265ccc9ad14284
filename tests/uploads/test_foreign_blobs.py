"""Two installations that were pointed at one store of files, which they should not be: neither removes the other's."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.uploads.finalizing_domain import Receipt
from tests.uploads.replicas import CHUNK, Replica, World, asked, piece, sha256, somebody, world

FOREIGN = "blobs_of_another_installation"


@pytest.fixture
async def here(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with world(database_url, tmp_path / "blobs") as opened:
        yield opened


@pytest.fixture
async def elsewhere(new_database: Callable[[], str], tmp_path: Path) -> AsyncIterator[World]:
    async with world(new_database(), tmp_path / "blobs") as opened:
        yield opened


async def stored(replica: Replica) -> Receipt:
    """A file."""
    data, caller = os.urandom(2 * CHUNK), somebody()
    upload = await replica.uploads.start(caller, asked(data))
    for index in range(2):
        await replica.uploads.chunk(upload, index, piece(data, index), sha256(piece(data, index)))
    return await replica.finalizer.finalize(caller, str(upload.id))


async def test_the_sweeper_of_one_leaves_the_files_of_the_other(here: World, elsewhere: World) -> None:
    async with here.replica() as ours, elsewhere.replica() as theirs:
        assert await ours.sweeps.orphans() == 0
        assert REGISTRY.get_sample_value(FOREIGN) == 0
        await stored(ours)
        await ours.blobs.real.write_chunk(uuid4(), 0, 0, b"nobody's")
        kept = here.tree()
        elsewhere.clock.ahead = here.clock.ahead = timedelta(hours=3)
        for _ in range(2):
            with capture_logs() as lines:
                assert await theirs.sweeps.orphans() == 0
            assert "belong to another installation" in lines[0]["event"]
        assert here.tree() == kept
        assert REGISTRY.get_sample_value(FOREIGN) == 1

        await stored(theirs)  # goes on all the same
        assert await ours.sweeps.orphans() == 2, "what nobody knows, and the stranger's file"
        assert REGISTRY.get_sample_value(FOREIGN) == 0
        assert here.tree() < kept


async def test_all_replicas_of_one_installation_know_it(here: World) -> None:
    async with here.replica() as one, here.replica() as other:
        assert await one.sweeps.orphans() == 0
        await one.blobs.real.write_chunk(uuid4(), 0, 0, b"nobody's")
        here.clock.ahead = timedelta(hours=3)
        assert await other.sweeps.orphans() == 1


async def test_a_store_that_was_marked_badly_is_nobodys(here: World) -> None:
    async with here.replica() as replica:
        (here.root / "installation").write_bytes(b"")
        await replica.blobs.real.write_chunk(uuid4(), 0, 0, b"nobody's")
        here.clock.ahead = timedelta(hours=3)
        assert await replica.sweeps.orphans() == 0
        (here.root / "installation").unlink()  # what an operator does who means it
        assert await replica.sweeps.orphans() == 1
