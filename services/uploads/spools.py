"""Owns what is too large to be held in memory while it is read once: files that have no name, and so no afterlife."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Final
from uuid import UUID

from runtime.errors import Failure, Reason
from runtime.telemetry import logger

# Archives of all users that are taken at the same time, each as large as it may be, on this process's disk.
PLACES: Final = 4
BUSY_PAUSE: Final = 30.0
FULL_PAUSE: Final = 60.0
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Spool:
    """A file that grows while it arrives, and is then read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file: Final = file

    async def write(self, data: bytes) -> None:
        """As `put`, beside the loop."""
        await asyncio.to_thread(self.put, data)

    def put(self, data: bytes) -> None:
        """Adds to its end. Raises Failure(UNAVAILABLE) when there is no room."""
        try:
            self.file.write(data)
            # Not when it is read, where a full disk would look like a damaged archive.
            self.file.flush()
        except OSError as error:
            raise _full(error) from None


class Spools:
    """Below a directory, one for each user at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._users: set[UUID] = set()

    def of(self, user_id: UUID) -> Callable[[], AbstractContextManager[Spool]]:
        """What opens the user's spool when it is needed."""
        return lambda: self._open(user_id)

    @contextmanager
    def _open(self, user_id: UUID) -> Iterator[Spool]:
        """A spool for as long as the block runs. Raises Failure(UNAVAILABLE) while there is no place for one."""
        if user_id in self._users:
            raise Failure(Reason.UNAVAILABLE, "Another archive of yours is being read.", retry_after=BUSY_PAUSE)
        if len(self._users) >= PLACES:
            raise Failure(Reason.UNAVAILABLE, "Other archives are being read.", retry_after=BUSY_PAUSE)
        self._users.add(user_id)
        try:
            with self.temporary() as spool:
                yield spool
        finally:
            self._users.discard(user_id)

    @contextmanager
    def temporary(self) -> Iterator[Spool]:
        """A spool of nobody's, gone when the block or this process ends. Raises Failure(UNAVAILABLE)."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = TemporaryFile(dir=self._directory)  # noqa: SIM115  # closed below
        except OSError as error:
            raise _full(error) from None
        with file:
            yield Spool(file)


def _full(error: OSError) -> Failure:
    logger().warning("an archive cannot be kept while it is read", error=repr(error))
    pause = FULL_PAUSE if error.errno in _FULL else BUSY_PAUSE
    return Failure(Reason.UNAVAILABLE, "There is no room for archives at the moment.", retry_after=pause)
