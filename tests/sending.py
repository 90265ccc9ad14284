"""Phones that send a file from a bad network: they go on from what the status says, and count what they send."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from services.uploads.blobs import MARK
from tests.factories import Phone

CHUNK = 1 << 20
PIECE = 1 << 16
PATIENCE = 60.0  # seconds; two cores may be busy with much else


def some_file(chunks: float) -> bytes:
    """A sound file of so many chunks."""
    return b"OggS" + os.urandom(int(chunks * CHUNK) - 4)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def until(true: Callable[[], Awaitable[Any]], *, pause: float = 0.01) -> Any:
    """What `true` says as soon as it is not nothing."""
    async with asyncio.timeout(PATIENCE):
        while not (said := await true()):
            await asyncio.sleep(pause)
        return said


def files_below(directory: Path) -> list[str]:
    """Every plain file there is, by its path from there, but the one that tells whose they are."""
    names = (str(one.relative_to(directory)) for one in directory.rglob("*") if one.is_file())
    return sorted(name for name in names if name != MARK)


class Sending:
    """A file on its way."""

    def __init__(self, phone: Phone, data: bytes, upload_id: str) -> None:
        self.phone = phone
        self.data = data
        self.id = upload_id
        self.chunks = -(-len(data) // CHUNK)
        self.sent = Counter[int]()
        """How often each chunk was sent as one, from its first byte on."""
        self.acknowledged = set[int]()
        """Chunks that an answer has said are stored."""
        self.refusals: list[httpx.Response] = []

    @classmethod
    async def started(cls, phone: Phone, data: bytes) -> Sending:
        asked = {"filename": "a.ogg", "total_size": len(data), "mime_type": "audio/ogg", "file_hash": sha256(data)}
        sending = cls(phone, data, "")
        answer = await sending.insist("POST", "/api/v1/uploads/init", json=asked)
        sending.id = answer.json()["upload_id"]
        return sending

    @property
    def path(self) -> str:
        return f"/api/v1/uploads/{self.id}"

    def part(self, index: int) -> bytes:
        return self.data[index * CHUNK : (index + 1) * CHUNK]

    async def call(self, verb: str, path: str, **request: Any) -> httpx.Response | None:
        """The answer; None when the line was cut. What is not a success says that it is worth coming again."""
        try:
            answer = await self.phone.call(verb, path, **request)
        except httpx.TransportError:
            return None
        if answer.is_server_error:
            assert answer.status_code in (503, 504), answer.text
            assert answer.json()["error"]["code"] in ("UNAVAILABLE", "DEADLINE_EXCEEDED"), answer.text
            assert int(answer.headers["retry-after"]) > 0
            self.refusals.append(answer)
        else:
            assert answer.is_success, answer.text
        return answer

    async def insist(self, verb: str, path: str, **request: Any) -> httpx.Response:
        """The answer, as soon as there is one that is a success."""

        async def success() -> httpx.Response | None:
            answer = await self.call(verb, path, **request)
            return answer if answer is not None and answer.is_success else None

        answer: httpx.Response = await until(success)
        return answer

    def chunk_request(self, index: int) -> dict[str, Any]:
        part = self.part(index)
        headers = {"content-type": "application/octet-stream", "x-chunk-checksum": sha256(part)}
        return {"path": f"{self.path}/chunk/{index}", "content": part, "headers": headers}

    async def chunk(self, index: int) -> bool:
        """Sends a chunk; whether it is stored."""
        self.sent[index] += 1
        answer = await self.call("POST", **self.chunk_request(index))
        if answer is None or not answer.is_success:
            return False
        assert answer.json()["uploaded"] is True
        self.acknowledged.add(index)
        return True

    async def some(self, indexes: Iterable[int], at_once: int = 4) -> None:
        """Sends chunks, some at once; who fails stops."""
        turns = iter(indexes)

        async def sender() -> None:
            for index in turns:
                if not await self.chunk(index):
                    return

        await asyncio.gather(*(sender() for _ in range(at_once)))

    async def status(self) -> httpx.Response:
        """What is stored, as soon as somebody tells; nothing that was acknowledged is missing."""
        answer = await self.insist("GET", f"{self.path}/status")
        missing = set(answer.json()["missing_chunks"])
        assert not missing & self.acknowledged
        return answer

    async def rest(self) -> None:
        """Sends what is missing, as often as it takes."""

        async def nothing_missing() -> bool:
            missing = (await self.status()).json()["missing_chunks"]
            await self.some(missing)
            return not missing

        await until(nothing_missing)

    async def rest_from_the_end(self) -> None:
        """Sends all chunks, the last one first: nothing can be hashed on its way."""
        await self.insist("GET", f"{self.path}/status")
        await self.some(reversed(range(self.chunks)))
        assert len(self.acknowledged) == self.chunks

    async def offset(self) -> int:
        return int((await self.status()).headers["upload-offset"])

    async def pieces(self, offset: int, pause: Callable[[int], Awaitable[None]] | None = None) -> AsyncIterator[bytes]:
        """Everything from `offset` on; `pause` is told ahead of each piece how many bytes have gone."""
        for at in range(offset, len(self.data), PIECE):
            if pause is not None:
                await pause(at)
            yield self.data[at : at + PIECE]

    async def stream(self, offset: int, pause: Callable[[int], Awaitable[None]] | None = None) -> httpx.Response | None:
        """Sends everything from `offset` on in one go."""
        headers = {"upload-offset": str(offset), "content-length": str(len(self.data) - offset)}
        return await self.call("PUT", f"{self.path}/content", content=self.pieces(offset, pause), headers=headers)

    async def finalized(self) -> dict[str, Any]:
        """The receipt, as soon as there is one."""
        receipt: dict[str, Any] = (await self.insist("POST", f"{self.path}/finalize")).json()
        assert receipt["checksum"] == sha256(self.data)
        return receipt

    async def check_arrived(self) -> None:
        """Finalizes; the file is what was sent, and stands in the feed once."""
        receipt = await self.finalized()
        assert sha256((await self.insist("GET", httpx.URL(receipt["file_url"]).path)).content) == sha256(self.data)
        assert await self.finalized() == receipt
        await self.check_in_feed()

    async def check_in_feed(self) -> None:
        """The record of the file is there, and was never written twice."""

        async def pulled() -> list[dict[str, Any]]:
            answer = await self.insist("GET", "/api/v1/sync/pull", params={"domains": "file"})
            return [one for one in answer.json()["changes"] if one["id"] == self.id]

        (record,) = await until(pulled)
        assert record["version"] == 1
        assert record["data"]["checksum"] == sha256(self.data)
