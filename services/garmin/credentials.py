"""Owns how tokens get into the auth service's vault and out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from satchel.auth.v1 import garmin_credentials_pb2 as pb
from satchel.auth.v1 import garmin_credentials_pb2_grpc as pb_grpc

from runtime.errors import Failure, Reason
from runtime.identity import ServiceTokens
from runtime.mesh import CALL_TIMEOUT


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """What is kept of an account at Garmin."""

    username: str = field(repr=False)
    tokens: str = field(repr=False)
    expire_time: datetime | None
    """Of the access token; aware."""


class CredentialsClient:
    """The auth service's GarminCredentialService.

    Every method raises Failure(UNAVAILABLE) while it is away, grpc.aio.AioRpcError for what nobody expects.
    """

    def __init__(self, opened: grpc.aio.Channel, tokens: ServiceTokens) -> None:
        self._stub = pb_grpc.GarminCredentialServiceStub(opened)
        self._tokens = tokens

    async def get(self, user_id: UUID) -> Credentials | None:
        """A user's; None: there are none."""
        request = pb.GetGarminCredentialsRequest(user_id=str(user_id))
        found = await self._call(self._stub.GetGarminCredentials, request, grpc.StatusCode.NOT_FOUND)
        if found is None:
            return None
        ends = found.token_expiration_date.ToDatetime(UTC) if found.HasField("token_expiration_date") else None
        return Credentials(username=found.garmin_username, tokens=found.access_token, expire_time=ends)

    async def put(self, user_id: UUID, credentials: Credentials, password: str) -> None:
        """Stores a user's in place of any other; an empty password is none. Raises Failure(NOT_FOUND): no such user."""
        given: dict[str, Any] = {
            "user_id": str(user_id),
            "garmin_username": credentials.username,
            "garmin_password_plaintext": password,
            "access_token": credentials.tokens,
            "token_expiration_date": _timestamp(credentials.expire_time),
        }
        update = pb.UpdateGarminCredentialsRequest(**given)
        if await self._call(self._stub.UpdateGarminCredentials, update, grpc.StatusCode.NOT_FOUND) is not None:
            return
        create = pb.CreateGarminCredentialsRequest(**given)
        try:
            if await self._call(self._stub.CreateGarminCredentials, create, grpc.StatusCode.NOT_FOUND) is None:
                raise Failure(Reason.NOT_FOUND, "There is no such user.")
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            if await self._call(self._stub.UpdateGarminCredentials, update, grpc.StatusCode.NOT_FOUND) is None:
                raise Failure(Reason.NOT_FOUND, "There is no such user.") from None

    async def replace_tokens(self, user_id: UUID, tokens: str, expire_time: datetime | None) -> bool:
        """Stores refreshed tokens; False: the user has none any more."""
        request = pb.UpdateGarminCredentialsRequest(
            user_id=str(user_id), access_token=tokens, token_expiration_date=_timestamp(expire_time)
        )
        done = await self._call(self._stub.UpdateGarminCredentials, request, grpc.StatusCode.NOT_FOUND)
        return done is not None

    async def delete(self, user_id: UUID) -> None:
        """Forgets a user's; harmless when there are none."""
        request = pb.DeleteGarminCredentialsRequest(user_id=str(user_id))
        await self._call(self._stub.DeleteGarminCredentials, request, None)

    async def _call(self, method: Any, request: Any, absent: grpc.StatusCode | None) -> Any:
        """The answer; None when the call ends with `absent`."""
        metadata = (("authorization", f"Bearer {self._tokens.current()}"),)
        try:
            return await method(request, timeout=CALL_TIMEOUT, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if absent is not None and error.code() is absent:
                return None
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise Failure(Reason.UNAVAILABLE, retry_after=1) from error
            raise


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
