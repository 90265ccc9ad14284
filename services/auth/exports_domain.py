"""Owns the export of an account: its own rows, its files, then its records, passed on as they come."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import UUID

from runtime.call import Principal
from runtime.errors import Failure, Reason
from services.auth.accounts import Account

if TYPE_CHECKING:
    from services.auth.exports_store import ExportStore

ROWS_PER_PAGE: Final = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What an export begins with."""

    user_id: UUID
    export_time: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Something of the account."""

    type: str
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Passed:
    """Whole lines as another service wrote them."""

    lines: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Footer:
    """What a whole export ends with: how much there was before it."""

    counts: Mapping[str, int]


Item: TypeAlias = "Header | Account | Line | Passed | Footer"


class Exports:
    """Everything of one account."""

    def __init__(
        self,
        store: ExportStore,
        account: Callable[[Principal], Awaitable[Account]],
        records: Callable[[str], AsyncGenerator[bytes]],
        files: Callable[[str, str], Awaitable[tuple[Sequence[Mapping[str, Any]], str]]],
        garmin_links: Callable[[UUID], Awaitable[Sequence[Mapping[str, Any]]]],
        *,
        now: Callable[[], datetime],
    ) -> None:
        """`records` streams the records' own export, `files` gives a page of files and the token of the next one.

        Both are asked in the caller's name, with the caller's own token. `garmin_links`: GarminCredentialVault.shown.
        `account` finds the caller's or raises
        Failure(INVALID_TOKEN).
        """
        self._store = store
        self._account = account
        self._records = records
        self._files = files
        self._garmin_links = garmin_links
        self._now = now

    async def everything(self, caller: Principal, authorization: str) -> AsyncGenerator[Item]:
        """Header, account, its rows, files, records and conflicts, footer.

        Raises Failure: INVALID_TOKEN, UNAVAILABLE, RATE_LIMITED; at once when a service is away that is needed later.
        """
        account, counts = await self._account(caller), Counter[str]()
        links = await self._garmin_links(caller.user_id)
        async with aclosing(self._records(authorization)) as pieces:
            first, page = await anext(pieces), await self._files(authorization, "")
            yield Header(user_id=caller.user_id, export_time=self._now())
            yield account
            for type in self._store.types:
                counts[f"{type}s"] = 0
                async for values in self._rows(type, caller.user_id):
                    counts[f"{type}s"] += 1
                    yield Line(type=type, values=values)
            counts["garmin_links"] = len(links)
            for link in links:
                yield Line(type="garmin_link", values=link)
            async for file in self._all_files(authorization, page):
                counts["files"] += 1
                yield Line(type="file", values=file)
            async for lines, footer in _inner(first, pieces):
                if lines:
                    yield Passed(lines=lines)
                counts.update(footer)
        yield Footer(counts={"files": 0, **counts})

    async def _rows(self, type: str, account_id: UUID) -> AsyncIterator[Mapping[str, Any]]:
        after: Any = None
        while page := await self._store.page(type, account_id, after, ROWS_PER_PAGE):
            for row in page:
                yield row
            after = page[-1]["id"]

    async def _all_files(
        self, authorization: str, page: tuple[Sequence[Mapping[str, Any]], str]
    ) -> AsyncIterator[Mapping[str, Any]]:
        while True:
            files, token = page
            for file in files:
                yield file
            if not token:
                return
            page = await self._files(authorization, token)


async def _inner(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, Mapping[str, int]]]:
    """The lines between the header and the footer of the records' export, and with the last of them what it counted.

    Each piece is whole lines. Raises Failure(UNAVAILABLE) when it was cut off.
    """
    held = first.partition(b"\n")[2]
    async for piece in rest:
        if piece:
            if held:
                yield held, {}
            held = piece
    lines, _, last = held.removesuffix(b"\n").rpartition(b"\n")
    footer = json.loads(last) if last else {}
    if footer.pop("end", None) is not True:
        raise Failure(Reason.UNAVAILABLE, retry_after=1)
    yield lines + b"\n" if lines else b"", footer
