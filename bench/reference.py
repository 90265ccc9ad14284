"""Runs the reference app on the product's PostgreSQL, in a schema of its own."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import jwt

from bench.servers import PORT, module, server
from deploy.parts import completed

# As reference_app reads them; importing it would open its database here.
_DATABASE_URL = "REFERENCE_DATABASE_URL"
_SECRET = "REFERENCE_SECRET"
_ALGORITHM = "HS256"


@dataclass(frozen=True)
class Reference:
    address: str
    secret: str

    def token(self) -> str:
        """The access token of a new user."""
        return jwt.encode({"sub": str(uuid4()), "exp": int(time.time()) + 3600}, self.secret, algorithm=_ALGORITHM)


@asynccontextmanager
async def reference(database_url: str, directory: Path, *, workers: int) -> AsyncIterator[Reference]:
    """The app under uvicorn with `workers` processes, for as long as the block runs."""
    secret = secrets.token_hex(32)
    env = {_DATABASE_URL: database_url.replace("postgresql://", "postgresql+asyncpg://", 1), _SECRET: secret}
    await completed(module(directory, "bench.reference_app", env=env))
    uvicorn = ("uvicorn", "bench.reference_app:app", "--port", PORT, "--workers", str(workers), "--no-access-log")
    async with server(directory, *uvicorn, env=env) as address:
        yield Reference(address, secret)
