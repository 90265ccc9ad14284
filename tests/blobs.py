"""Bytes to store, and the ways to store and read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from random import Random
from uuid import UUID, uuid4

from services.uploads.blobs import Blobs

CHUNK = 1 << 20


def some_bytes(size: int) -> bytes:
    return Random(size).randbytes(size)


def chunks_of(data: bytes, size: int = CHUNK) -> list[tuple[int, int, memoryview]]:
    """Index, offset and bytes of each."""
    return [(at // size, at, memoryview(data)[at : at + size]) for at in range(0, len(data), size)]


async def upload(blobs: Blobs, data: bytes, size: int = CHUNK) -> UUID:
    """All chunks of `data`, some at a time."""
    upload_id, turns = uuid4(), asyncio.Semaphore(16)

    async def write(chunk: tuple[int, int, memoryview]) -> None:
        async with turns:
            await blobs.write_chunk(upload_id, *chunk)

    await asyncio.gather(*(write(chunk) for chunk in chunks_of(data, size)))
    return upload_id


async def store(blobs: Blobs, data: bytes) -> UUID:
    """A file."""
    upload_id, file_id = await upload(blobs, data), uuid4()
    await blobs.assemble(upload_id, file_id, len(chunks_of(data)), len(data))
    return file_id


async def content(blobs: Blobs, file_id: UUID, start: int, end: int) -> bytes:
    return b"".join([piece async for piece in blobs.read(file_id, start, end)])


async def ids(listing: Callable[[], AsyncIterator[tuple[UUID, datetime]]]) -> list[UUID]:
    return sorted([one async for one, _ in listing()])
