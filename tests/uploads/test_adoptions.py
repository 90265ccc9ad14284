"""Adoption of files: they change hands only when their guest's feed knows of all of them, and no end is forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from runtime.database import Database, database
from runtime.errors import Failure, Reason
from services.uploads.files_domain import Files
from services.uploads.outbox_domain import Outbox
from services.uploads.outbox_store import OutboxStore, add
from services.uploads.uploads_domain import Upload
from services.uploads.uploads_store import UploadStore
from tests.conftest import Edge
from tests.factories import Phone

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)
TEXT = {"filename": "a.txt", "mime_type": "text/plain", "file_hash": "ab" * 32, "total_size": 3}


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with database(database_url, connections=4, name="test") as opened:
        yield opened


def files(db: Database, *, at: datetime = NOW) -> Files:
    # Bytes and links have no part in it.
    outbox = Outbox(add, lambda: None, now=lambda: at)
    return Files(UploadStore(db), None, None, outbox, now=lambda: at)  # type: ignore[arg-type]


async def stored(db: Database, user_id: UUID, status: str = "completed") -> UUID:
    upload = Upload(
        id=uuid4(),
        user_id=user_id,
        tenant_id=1,
        filename="a.txt",
        mime_type="text/plain",
        total_size=3,
        chunk_size=65536,
        file_hash=uuid4().bytes * 2,
        status="active",
        contested=False,
        create_time=NOW,
        expire_time=NOW + timedelta(days=1),
        finish_time=None,
    )
    async with UploadStore(db).start(user_id) as starting:
        await starting.insert(upload)
    if status != "active":
        async with UploadStore(db).hold(upload.id) as held:
            await held.end(status, NOW)
    return upload.id


async def owners(db: Database, *ids: UUID) -> list[tuple[UUID, int]]:
    found = [await UploadStore(db).find(id) for id in ids]
    return [(one.user_id, one.tenant_id) for one in found if one]


async def outbox(db: Database) -> list[dict[str, Any]]:
    async with db.statements() as statements:
        cursor = await statements.connection.execute("SELECT user_id, record_id, data FROM uploads.outbox ORDER BY id")
        return [dict(row) for row in await cursor.fetchall()]


async def test_files_and_uploads_in_progress_move_and_what_has_ended_stays(db: Database) -> None:
    guest, user = uuid4(), uuid4()
    living = [await stored(db, guest, status) for status in ("active", "assembling", "completed")]
    ended = [await stored(db, guest, status) for status in ("failed", "cancelled", "expired", "deleted")]
    others = await stored(db, uuid4())
    assert await files(db).adopt(str(guest), str(user), 7) == 3
    assert await owners(db, *living) == [(user, 7)] * 3
    assert await owners(db, *ended) == [(guest, 1)] * 4
    assert (await owners(db, others))[0][0] not in (guest, user)
    assert await files(db).adopt(str(guest), str(user), 7) == 0
    assert await outbox(db) == []


async def test_it_is_not_done_before_the_guests_feed_knows_of_every_file(db: Database) -> None:
    guest, user = uuid4(), uuid4()
    id = await stored(db, guest)
    async with db.transaction() as transaction:
        await add(
            transaction.connection, user_id=guest, tenant_id=1, domain="file", record_id=str(id), data={}, now=NOW
        )
    for _ in range(2):
        with pytest.raises(Failure) as refused:
            await files(db).adopt(str(guest), str(user), 1)
        assert refused.value.reason is Reason.UNAVAILABLE
    store = OutboxStore(db)
    batch = await store.take(NOW, timedelta(seconds=60), 100)
    assert batch is not None
    assert batch.user_id == guest
    await store.finish(batch, batch.records, [])
    assert await files(db).adopt(str(guest), str(user), 1) == 0
    assert await owners(db, id) == [(user, 1)]


async def test_a_file_that_is_removed_before_its_record_has_moved_ends_there_too(db: Database) -> None:
    guest, user = uuid4(), uuid4()
    id = await stored(db, guest)
    await files(db).adopt(str(guest), str(user), 1)
    async with UploadStore(db).hold(id) as held:
        await held.end("deleted", NOW + timedelta(seconds=1))
    await files(db, at=NOW + timedelta(seconds=2)).adopt(str(guest), str(user), 1)
    assert await outbox(db) == [{"user_id": user, "record_id": str(id), "data": None}]


async def test_a_guest_whose_files_went_to_an_account_starts_no_more(edge: Edge, phone: Phone) -> None:
    async with database(edge.mesh.config.database_url, connections=1, name="test") as db:
        await files(db).adopt(phone.user_id, str(uuid4()), 1)
    answer = await phone.call("POST", "/api/v1/uploads/init", json=TEXT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "AUTH_001")
    assert (await phone.call("GET", "/api/v1/files")).json()["files"] == []
