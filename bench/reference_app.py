"""What a careful developer would write instead: FastAPI, pydantic and SQLAlchemy's async ORM, one transaction a batch.

It does so twice. `batch_upload` gives each item a receipt and lets no bad one sink the rest, the way the ORM offers:
item by item, each read by pydantic, looked up, and flushed in a savepoint of its own. `batch_upload_in_bulk` trades
that promise for speed: the body is read as a whole, one SELECT finds the ids that are there, one `add_all` stores the
others, which SQLAlchemy sends as few INSERTs as it can, and one bad item sinks its batch. Neither keeps a feed,
versions or idempotency keys.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AwareDatetime, BaseModel, Field, ValidationError
from sqlalchemy import DateTime, Index, MetaData, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateSchema

# What it reads from the environment.
DATABASE_URL = "REFERENCE_DATABASE_URL"
SECRET = "REFERENCE_SECRET"
ALGORITHM = "HS256"
SCHEMA = "reference"


class Base(DeclarativeBase):
    metadata = MetaData(schema=SCHEMA)
    type_annotation_map = {datetime: DateTime(timezone=True), dict[str, Any]: JSONB}  # noqa: RUF012  # SQLAlchemy's way


class Training(Base):
    """A stored session."""

    __tablename__ = "sessions"
    __table_args__ = (Index("sessions_by_start", "user_id", "started_at"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID]
    device_type: Mapped[str]
    training_id: Mapped[str | None]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    total_duration_seconds: Mapped[int]
    total_distance_meters: Mapped[float | None]
    total_calories: Mapped[float | None]
    avg_heart_rate: Mapped[int | None]
    max_heart_rate: Mapped[int | None]
    xp_earned: Mapped[int | None]
    device_metrics: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Item(BaseModel):
    """A session as a phone sends it."""

    client_session_id: UUID
    device_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
    training_id: Annotated[str, Field(max_length=100)] | None = None
    started_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    total_duration_seconds: Annotated[int, Field(ge=0, le=604_800)]
    total_distance_meters: Annotated[float, Field(ge=0, le=10_000_000)] | None = None
    total_calories: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    avg_heart_rate: Annotated[int, Field(ge=0, le=300)] | None = None
    max_heart_rate: Annotated[int, Field(ge=0, le=300)] | None = None
    xp_earned: Annotated[int, Field(ge=0)] | None = None
    device_metrics: dict[str, Any] | None = None


class Batch(BaseModel):
    sessions: Annotated[list[Item], Field(min_length=1, max_length=1000)]


class OpenBatch(BaseModel):
    """A batch whose items are read one by one."""

    sessions: Annotated[list[Any], Field(min_length=1, max_length=1000)]


class Result(BaseModel):
    client_session_id: str
    status: Literal["created", "duplicate", "error"]
    error: str | None = None


class Answer(BaseModel):
    results: list[Result]
    created: int
    duplicates: int
    failed: int = 0


engine = create_async_engine(os.environ[DATABASE_URL], pool_size=8)
new_session = async_sessionmaker(engine, expire_on_commit=False)
bearer = HTTPBearer()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await engine.dispose()


async def database() -> AsyncIterator[AsyncSession]:
    async with new_session() as session:
        yield session


async def caller(credentials: Annotated[HTTPAuthorizationCredentials, Depends(bearer)]) -> UUID:
    try:
        claims = jwt.decode(credentials.credentials, os.environ[SECRET], algorithms=[ALGORITHM])
        return UUID(claims["sub"])
    except (jwt.PyJWTError, KeyError, ValueError):
        raise HTTPException(401, "invalid token") from None


app = FastAPI(lifespan=lifespan)


@app.post("/sessions/batch_upload")
async def batch_upload(
    batch: OpenBatch,
    user_id: Annotated[UUID, Depends(caller)],
    session: Annotated[AsyncSession, Depends(database)],
) -> Answer:
    results = [await _store(session, user_id, sent) for sent in batch.sessions]
    await session.commit()
    counts = Counter(result.status for result in results)
    return Answer(results=results, created=counts["created"], duplicates=counts["duplicate"], failed=counts["error"])


async def _store(session: AsyncSession, user_id: UUID, sent: Any) -> Result:
    try:
        item = Item.model_validate(sent)
        id = item.client_session_id
        if await session.get(Training, id) is not None:
            return Result(client_session_id=str(id), status="duplicate")
        async with session.begin_nested():
            session.add(Training(id=id, user_id=user_id, **item.model_dump(exclude={"client_session_id"})))
    except (ValidationError, DBAPIError) as error:
        named = sent.get("client_session_id") if isinstance(sent, dict) else None
        return Result(client_session_id=str(named), status="error", error=str(error))
    return Result(client_session_id=str(id), status="created")


@app.post("/sessions/batch_upload_in_bulk")
async def batch_upload_in_bulk(
    batch: Batch,
    user_id: Annotated[UUID, Depends(caller)],
    session: Annotated[AsyncSession, Depends(database)],
) -> Answer:
    ids = [item.client_session_id for item in batch.sessions]
    known = set(await session.scalars(select(Training.id).where(Training.id.in_(ids))))
    new = {item.client_session_id: item for item in batch.sessions if item.client_session_id not in known}
    session.add_all(
        Training(id=id, user_id=user_id, **item.model_dump(exclude={"client_session_id"})) for id, item in new.items()
    )
    await session.commit()
    results = [Result(client_session_id=str(id), status="created" if id in new else "duplicate") for id in ids]
    return Answer(results=results, created=len(new), duplicates=len(ids) - len(new))


async def create_tables() -> None:
    async with engine.begin() as connection:
        await connection.execute(CreateSchema(SCHEMA, if_not_exists=True))
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(create_tables())
