"""Owns what the connector asks of the other services in a user's name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

import grpc
import orjson
from google.api.httpbody_pb2 import HttpBody
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from satchel.auth.v1 import auth_pb2, auth_pb2_grpc
from satchel.sessions.v1 import sync_pb2, sync_pb2_grpc
from satchel.uploads.v1 import uploads_pb2, uploads_pb2_grpc

from runtime.errors import Failure, Reason
from runtime.mesh import CALL_TIMEOUT, Acting

ADD_TIMEOUT: Final = 60.0
PULL_TIMEOUT: Final = 10.0
PLANS_PER_PAGE: Final = 500
# The uploads service reads one recording at a time and lets a few more wait; others want to be heard as well.
_ADDING: Final = 4
_PIECE: Final = 256 * 1024
_BOUNDARY: Final = "satchel-8c2f6d0b51e7"
# What is away for a moment is not worth a run of its own.
_PAUSES: Final = (0.25, 1.0, 4.0)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedActivity:
    """What became of a recording."""

    id: str
    """Of the file, and of the record in the feed."""
    created: bool


class Plan(NamedTuple):
    """A training plan as it stands in the user's feed."""

    id: str
    data: dict[str, Any] | None
    """None: it was deleted."""


class Neighbours:
    """Calls as the user, with tokens for five minutes that say who acts."""

    def __init__(
        self, acting: Acting, auth: grpc.aio.Channel, uploads: grpc.aio.Channel, sessions: grpc.aio.Channel
    ) -> None:
        self._acting = acting
        self._auth = auth_pb2_grpc.AuthServiceStub(auth)
        self._uploads = uploads_pb2_grpc.UploadServiceStub(uploads)
        self._sync = sync_pb2_grpc.SyncServiceStub(sessions)
        self._adding = asyncio.Semaphore(_ADDING)

    async def make_known(self, authorization: str) -> None:
        """Has the auth service know whoever the token in `authorization` speaks for, whose issuer may be another.

        It gives such a user an account when they first ask for it. Raises Failure: INVALID_TOKEN for one who was
        deleted here, RATE_LIMITED, UNAVAILABLE.
        """
        try:
            await self._auth.GetMe(
                auth_pb2.GetMeRequest(), timeout=CALL_TIMEOUT, metadata=(("authorization", authorization),)
            )
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from error

    async def add_activity(self, user_id: UUID, filename: str, content: bytes) -> AddedActivity:
        """Hands a recording over. Raises Failure as AddActivity does, NOT_FOUND for a user who is gone."""

        async def add(metadata: tuple[tuple[str, str], ...]) -> HttpBody:
            return await self._uploads.AddActivity(
                _form(user_id, filename, content), timeout=ADD_TIMEOUT, metadata=metadata
            )

        async with self._adding:
            answer = orjson.loads((await self._as_user(user_id, add)).data)
        return AddedActivity(id=answer["activity_id"], created=answer["status"] == "created")

    async def plans(self, user_id: UUID) -> list[Plan]:
        """All training plans, deleted ones as long as they are remembered. Raises Failure."""
        found: list[Plan] = []
        cursor, more = "", True
        while more:
            request = sync_pb2.PullChangesRequest(cursor=cursor, domains=["workout_plan"], limit=PLANS_PER_PAGE)

            async def pull(
                metadata: tuple[tuple[str, str], ...], request: sync_pb2.PullChangesRequest = request
            ) -> sync_pb2.PullChangesResponse:
                return await self._sync.PullChanges(request, timeout=PULL_TIMEOUT, metadata=metadata)

            page = await self._as_user(user_id, pull)
            found += [Plan(one.id, None if one.deleted else orjson.loads(one.data)) for one in page.changes]
            cursor, more = page.next_cursor, page.has_more
        return found

    async def _as_user(self, user_id: UUID, call: Callable[[tuple[tuple[str, str], ...]], Awaitable[T]]) -> T:
        for pause in (*_PAUSES, None):
            try:
                return await call(await self._acting.acting_for(user_id))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    self._acting.forget(user_id)
                elif error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise _failure(error) from error
                if pause is None:
                    raise Failure(Reason.UNAVAILABLE, retry_after=1) from error
            await asyncio.sleep(pause)
        raise AssertionError("the last try raises")


async def _form(user_id: UUID, filename: str, content: bytes) -> AsyncIterator[uploads_pb2.AddActivityRequest]:
    """The form that AddActivity wants, piece by piece. A boundary must not occur in what it bounds."""
    boundary = _BOUNDARY
    while f"--{boundary}".encode() in content:
        boundary += "-"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
    form = HttpBody(content_type=f"multipart/form-data; boundary={boundary}", data=head.encode() + content[:_PIECE])
    yield uploads_pb2.AddActivityRequest(user_id=str(user_id), form=form)
    for start in range(_PIECE, len(content), _PIECE):
        yield uploads_pb2.AddActivityRequest(form=HttpBody(data=content[start : start + _PIECE]))
    yield uploads_pb2.AddActivityRequest(form=HttpBody(data=f"\r\n--{boundary}--\r\n".encode()))


def _failure(error: grpc.aio.AioRpcError) -> Failure:
    """The refusal as the other service has put it."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has all that is read of a call
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.reason in Reason.__members__:
            return Failure(Reason[info.reason], status.message)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return Failure(Reason.UNAVAILABLE, retry_after=1)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failure(Reason.DEADLINE_EXCEEDED)
    return Failure(Reason.INTERNAL)
