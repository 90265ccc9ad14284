"""The world that convergence is tested in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.convergence.world import World, world


@pytest.fixture(scope="package")
async def mesh() -> AsyncIterator[World]:
    """Not in pytest's own directory: PostgreSQL may run under another account, to which that is closed."""
    with TemporaryDirectory(prefix="satchel-") as directory:
        async with world(Path(directory)) as started:
            yield started
