"""Owns how a service reaches the others: one channel each, a service token and a deadline on every call."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from satchel.auth.v1 import (
    application_tokens_pb2,
    application_tokens_pb2_grpc,
    auth_pb2,
    auth_pb2_grpc,
    token_exchange_pb2,
    token_exchange_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)
from satchel.garmin.v1 import garmin_pb2, garmin_pb2_grpc
from satchel.health.v1 import health_pb2, health_pb2_grpc
from satchel.sessions.v1 import sync_pb2, sync_pb2_grpc
from satchel.uploads.v1 import uploads_pb2, uploads_pb2_grpc

from runtime.application_tokens import ResolvedToken
from runtime.coalesce import Coalesced
from runtime.errors import Failure, Reason
from runtime.identity import Revocations, ServiceTokens
from runtime.outcomes import Batch, Key, Row
from runtime.telemetry import REVOCATION_ERRORS, logger
from runtime.tracing import client_interceptors

CALL_TIMEOUT: Final = 2.0
# However much there is to erase, the service ends the call before this and goes on with the next one.
ERASE_TIMEOUT: Final = 30.0
# The sessions service may wait some seconds for the user's feed while a phone pushes much.
STORE_TIMEOUT: Final = 10.0
# The health service writes the batch before it answers.
REPORT_TIMEOUT: Final = 5.0
# However long a phone takes to read all it has.
EXPORT_TIMEOUT: Final = 3600.0
FILES_PER_PAGE: Final = 1000
# An ended sign-in must be known everywhere within a second.
REVOCATION_INTERVAL: Final = 0.5
# RFC 8693.
TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105  # the name of a grant
USER_ID_TYPE: Final = "urn:satchel:user-id"
ACTING_KEPT: Final = 10_000
# Of tokens, in one question to the auth service.
DIGESTS_AT_ONCE: Final = 1000
# Of outcomes, made into messages before others have their turn.
OUTCOMES_AT_ONCE: Final = 250
MAX_COUNT: Final = 2**32 - 1
# Milliseconds: a clock that is more than 31 years off says no more by its distance.
FAR: Final = 1e12 - 1
CHANNEL_OPTIONS: Final = (
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
)


# For streams: one whose other end vanished without a word is noticed, and a message may be a page of a feed.
STREAM_OPTIONS: Final = (
    *CHANNEL_OPTIONS,
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 32 * 1024 * 1024),
)


@asynccontextmanager
async def channel(
    address: str, options: Sequence[tuple[str, str | int]] = CHANNEL_OPTIONS
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to another service for as long as the block runs."""
    async with grpc.aio.insecure_channel(address, options=options, interceptors=client_interceptors()) as opened:
        yield opened


class AuthClient:
    """What every service asks of the auth service."""

    def __init__(self, opened: grpc.aio.Channel, tokens: ServiceTokens) -> None:
        self._stub = auth_pb2_grpc.AuthServiceStub(opened)
        self._applications = application_tokens_pb2_grpc.ApplicationTokenServiceStub(opened)
        self._users = users_pb2_grpc.UserServiceStub(opened)
        self._tokens = tokens
        self._resolved = Coalesced(self._resolve)

    async def resolve(self, digest: bytes) -> ResolvedToken | None:
        """What an application's token speaks for; None: nobody's. Raises grpc.aio.AioRpcError when auth is away."""
        return await self._resolved.get(digest)

    async def keys(self) -> Iterable[Mapping[str, str]]:
        """The public signing keys as JSON Web Keys. Raises grpc.aio.AioRpcError when auth is away."""
        response = await self._stub.GetJwks(auth_pb2.GetJwksRequest(), timeout=CALL_TIMEOUT)
        return [
            {field.name: value for field, value in key.ListFields() if isinstance(value, str)} for key in response.keys
        ]

    async def find_user(self, email: str) -> UUID | None:
        """The id of the account with an address; None: there is none. Raises grpc.aio.AioRpcError when auth is away."""
        metadata = (("authorization", f"Bearer {self._tokens.current()}"),)
        request = users_pb2.FindUserRequest(email=email)
        try:
            found = await self._users.FindUser(request, timeout=CALL_TIMEOUT, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return UUID(found.id)

    async def revoked_since(self, since: Timestamp | None) -> tuple[list[UUID], list[UUID], Timestamp]:
        """Sign-ins ended since, users of issuers elsewhere who were deleted since, and the moment to ask from next.

        Raises grpc.aio.AioRpcError when auth is away.
        """
        response = await self._stub.ListRevokedSignIns(
            auth_pb2.ListRevokedSignInsRequest(since=since),
            timeout=CALL_TIMEOUT,
            metadata=(("authorization", f"Bearer {self._tokens.current()}"),),
        )
        ended, deleted = ([UUID(one) for one in ids] for ids in (response.sign_in_ids, response.deleted_user_ids))
        return ended, deleted, response.next_since

    async def _resolve(self, digests: Sequence[bytes]) -> dict[bytes, ResolvedToken]:
        # However many come at once, made up or not: a question with too many is refused, with all that it asks for.
        parts = [digests[start : start + DIGESTS_AT_ONCE] for start in range(0, len(digests), DIGESTS_AT_ONCE)]
        found = await asyncio.gather(*map(self._resolve_some, parts))
        return {digest: token for part in found for digest, token in part.items()}

    async def _resolve_some(self, digests: Sequence[bytes]) -> dict[bytes, ResolvedToken]:
        response = await self._applications.ResolveApplicationTokens(
            application_tokens_pb2.ResolveApplicationTokensRequest(digests=digests),
            timeout=CALL_TIMEOUT,
            metadata=(("authorization", f"Bearer {self._tokens.current()}"),),
        )
        return {
            one.digest: ResolvedToken(
                id=UUID(one.id),
                user_id=UUID(one.user_id),
                tenant_id=one.tenant_id,
                tier=one.tier,
                scopes=frozenset(one.scopes),
                expires_at=one.expire_time.ToMicroseconds() / 1e6 if one.HasField("expire_time") else math.inf,
                revoked=one.revoked,
            )
            for one in response.tokens
        }


class Acting:
    """How a service calls the others in a user's name: tokens of five minutes, each used for half of that."""

    def __init__(
        self, opened: grpc.aio.Channel, tokens: ServiceTokens, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`opened` leads to the auth service; `tokens` are those of the service that acts."""
        self._stub = token_exchange_pb2_grpc.TokenExchangeServiceStub(opened)
        self._tokens = tokens
        self._monotonic = monotonic
        self._kept: OrderedDict[UUID, tuple[str, float]] = OrderedDict()
        self._exchanged = Coalesced(self._exchange)

    async def acting_for(self, user_id: UUID) -> tuple[tuple[str, str], ...]:
        """The metadata of a call in the user's name.

        Raises Failure(NOT_FOUND) for a user who is gone, grpc.aio.AioRpcError when auth is away.
        """
        token, renew_at = self._kept.get(user_id, ("", -math.inf))
        if self._monotonic() >= renew_at:
            outcome = await self._exchanged.get(user_id)
            if not isinstance(outcome, token_exchange_pb2.ExchangeTokenResponse):
                self._kept.pop(user_id, None)
                raise outcome or Failure(Reason.NOT_FOUND)
            token = outcome.access_token
            self._kept[user_id] = token, self._monotonic() + outcome.expires_in / 2
            self._kept.move_to_end(user_id)
            if len(self._kept) > ACTING_KEPT:
                self._kept.popitem(last=False)
        return (("authorization", f"Bearer {token}"),)

    def forget(self, user_id: UUID) -> None:
        """The user's token was refused somewhere: the next call gets another one."""
        self._kept.pop(user_id, None)

    async def _exchange(
        self, user_ids: Sequence[UUID]
    ) -> dict[UUID, token_exchange_pb2.ExchangeTokenResponse | Exception]:
        return dict(zip(user_ids, await asyncio.gather(*map(self._exchange_one, user_ids)), strict=True))

    async def _exchange_one(self, user_id: UUID) -> token_exchange_pb2.ExchangeTokenResponse | Exception:
        request = token_exchange_pb2.ExchangeTokenRequest(
            grant_type=TOKEN_EXCHANGE, subject_token=str(user_id), subject_token_type=USER_ID_TYPE
        )
        metadata = (("authorization", f"Bearer {self._tokens.current()}"),)
        try:
            return await self._stub.ExchangeToken(request, timeout=CALL_TIMEOUT, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return Failure(Reason.NOT_FOUND) if error.code() is grpc.StatusCode.NOT_FOUND else error


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordToStore:
    """A record of a user as a service wants it to be."""

    domain: str
    id: str
    data: str | None
    """A JSON object as text; None: the record is to end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreReceipt:
    """What became of one."""

    status: str
    """APPLIED, DUPLICATE or REJECTED."""
    reason: str
    """For REJECTED: the name of a Reason."""
    message: str


class SessionsClient:
    """What other services ask of the sessions service."""

    def __init__(self, opened: grpc.aio.Channel, tokens: ServiceTokens) -> None:
        self._stub = sync_pb2_grpc.SyncServiceStub(opened)
        self._tokens = tokens

    async def erase_user(self, user_id: UUID) -> dict[str, Any]:
        """Erases all that a user has there; returns what was erased in all, this time and before.

        Raises grpc.aio.AioRpcError when it is away, or when there is more.
        """
        response = await self._stub.EraseUser(
            sync_pb2.EraseUserRequest(user_id=str(user_id)),
            timeout=ERASE_TIMEOUT,
            metadata=self._metadata(),
        )
        return {"records": dict(response.total_records)}

    async def export(self, authorization: str) -> AsyncGenerator[bytes]:
        """The export of records of whoever the token in `authorization` speaks for, in pieces of whole lines.

        Raises Failure: UNAVAILABLE, RATE_LIMITED; grpc.aio.AioRpcError when it does not take the call.
        """
        call = self._stub.ExportRecords(
            sync_pb2.ExportRecordsRequest(), timeout=EXPORT_TIMEOUT, metadata=(("authorization", authorization),)
        )
        try:
            async for piece in call:
                yield piece.data
        except grpc.aio.AioRpcError as error:
            raise _refusal(error) from error
        finally:
            call.cancel()

    async def adopt(self, guest_id: UUID, user_id: UUID, tenant_id: int) -> None:
        """Moves all records of a guest to an account. Raises grpc.aio.AioRpcError when it is away, or there is more."""
        request = sync_pb2.AdoptRecordsRequest(guest_id=str(guest_id), user_id=str(user_id), tenant_id=tenant_id)
        await self._stub.AdoptRecords(request, timeout=ERASE_TIMEOUT, metadata=self._metadata())

    async def store_records(
        self, user_id: UUID, tenant_id: int, records: Sequence[RecordToStore]
    ) -> list[StoreReceipt]:
        """Stores 1 to 1000 records of a user there; a repeat is harmless. Returns a receipt for each.

        Raises Failure(UNAVAILABLE) when it is away, grpc.aio.AioRpcError when it does not take the call.
        """
        request = sync_pb2.StoreRecordsRequest(user_id=str(user_id), tenant_id=tenant_id)
        for one in records:
            request.records.add(domain=one.domain, id=one.id, data=one.data or "", deleted=one.data is None)
        try:
            response = await self._stub.StoreRecords(request, timeout=STORE_TIMEOUT, metadata=self._metadata())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise Failure(Reason.UNAVAILABLE) from error
            raise
        return [StoreReceipt(status=one.status, reason=one.reason, message=one.message) for one in response.receipts]

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._tokens.current()}"),)


class UploadsClient:
    """What other services ask of the uploads service."""

    def __init__(self, opened: grpc.aio.Channel, tokens: ServiceTokens) -> None:
        self._stub = uploads_pb2_grpc.UploadServiceStub(opened)
        self._tokens = tokens

    async def erase_user(self, user_id: UUID) -> dict[str, Any]:
        """Ends all files of a user; returns what was ended in all, this time and before.

        Raises grpc.aio.AioRpcError when it is away, or when there is more.
        """
        response = await self._stub.EraseUserFiles(
            uploads_pb2.EraseUserFilesRequest(user_id=str(user_id)),
            timeout=ERASE_TIMEOUT,
            metadata=(("authorization", f"Bearer {self._tokens.current()}"),),
        )
        return {"files": response.total_files, "uploads": response.total_uploads, "bytes": response.total_bytes}

    async def files(self, authorization: str, page_token: str) -> tuple[list[dict[str, Any]], str]:
        """A page of the files of whoever the token in `authorization` speaks for, and the token of the next page.

        Raises Failure: UNAVAILABLE, RATE_LIMITED; grpc.aio.AioRpcError when it does not take the call.
        """
        request = uploads_pb2.ListFilesRequest(page_size=FILES_PER_PAGE, page_token=page_token)
        metadata = (("authorization", authorization),)
        try:
            response = await self._stub.ListFiles(request, timeout=STORE_TIMEOUT, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _refusal(error) from error
        shown = [
            {**MessageToDict(one, preserving_proto_field_name=True), "file_size": int(one.file_size)}
            for one in response.files
        ]
        return shown, response.next_page_token

    async def adopt(self, guest_id: UUID, user_id: UUID, tenant_id: int) -> None:
        """Moves all files of a guest to an account. Raises grpc.aio.AioRpcError when it is away, or cannot yet."""
        await self._stub.AdoptFiles(
            uploads_pb2.AdoptFilesRequest(guest_id=str(guest_id), user_id=str(user_id), tenant_id=tenant_id),
            timeout=ERASE_TIMEOUT,
            metadata=(("authorization", f"Bearer {self._tokens.current()}"),),
        )


class HealthClient:
    """What other services tell the health service."""

    def __init__(self, opened: grpc.aio.Channel, tokens: ServiceTokens) -> None:
        self._stub = health_pb2_grpc.HealthServiceStub(opened)
        self._tokens = tokens

    async def erase_user(self, user_id: UUID) -> dict[str, Any]:
        """Forgets all devices of a user; returns how many were forgotten in all, this time and before.

        Raises grpc.aio.AioRpcError when it is away.
        """
        response = await self._stub.EraseUserDevices(
            health_pb2.EraseUserDevicesRequest(user_id=str(user_id)),
            timeout=ERASE_TIMEOUT,
            metadata=(("authorization", f"Bearer {self._tokens.current()}"),),
        )
        return {"devices": response.total_devices}

    async def report(self, reporter: UUID, batch: Batch) -> None:
        """Reports a batch of outcomes, which is counted once. `reporter` is this process, since its start.

        Raises grpc.aio.AioRpcError when it is away.
        """
        request = health_pb2.ReportOutcomesRequest(
            reporter=str(reporter), number=batch.number, dropped=min(batch.dropped, MAX_COUNT)
        )
        for place, (key, row) in enumerate(batch.rows.items()):
            if place % OUTCOMES_AT_ONCE == OUTCOMES_AT_ONCE - 1:
                await asyncio.sleep(0)
            _add_outcome(request, key, row)
        await self._stub.ReportOutcomes(
            request,
            timeout=REPORT_TIMEOUT,
            metadata=(("authorization", f"Bearer {self._tokens.current()}"),),
        )


def _add_outcome(request: health_pb2.ReportOutcomesRequest, key: Key, row: Row) -> None:
    device, skew = row.device, row.device.clock_skew_ms
    added = request.outcomes.add(
        tenant_id=key.tenant_id,
        user_id=str(key.user_id),
        device_id=key.device_id,
        domain=key.domain,
        syncs=min(row.syncs, MAX_COUNT),
        failed_syncs=min(row.failed_syncs, MAX_COUNT),
        items=min(row.items, MAX_COUNT),
        conflicts=min(row.conflicts, MAX_COUNT),
        rejected=min(row.rejected, MAX_COUNT),
        duration_ms=row.duration_ms,
        uploads_completed=row.uploads_completed,
        uploads_abandoned=row.uploads_abandoned,
        upload_bytes=row.upload_bytes,
        platform=device.platform,
        network_type=device.network_type,
        app_version=device.app_version,
        os_version=device.os_version,
        clock_skew_ms=None if skew is None else max(-FAR, min(FAR, skew)),
    )
    added.time.FromMicroseconds(round(row.time * 1e6))


class GarminClient:
    """What other services ask of the Garmin connector."""

    def __init__(self, opened: grpc.aio.Channel, tokens: ServiceTokens) -> None:
        self._stub = garmin_pb2_grpc.GarminServiceStub(opened)
        self._tokens = tokens

    async def erase_user(self, user_id: UUID) -> dict[str, Any]:
        """Ends a user's link; what came over it is others' to erase. Raises grpc.aio.AioRpcError when it is away."""
        await self._stub.EraseUserLink(
            garmin_pb2.EraseUserLinkRequest(user_id=str(user_id)),
            timeout=ERASE_TIMEOUT,
            metadata=(("authorization", f"Bearer {self._tokens.current()}"),),
        )
        return {}


def _refusal(error: grpc.aio.AioRpcError) -> Exception:
    """What another service's refusal comes to for the phone that is behind the call."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return Failure(Reason.UNAVAILABLE, retry_after=1)
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Failure(Reason.RATE_LIMITED, retry_after=60)
    return error


@asynccontextmanager
async def watch_revocations(auth: AuthClient, revocations: Revocations) -> AsyncIterator[None]:
    """Keeps `revocations` up to date for as long as the block runs; what is known stays known while auth is away."""

    async def watch() -> None:
        since: Timestamp | None = None
        failing = False
        while True:
            try:
                ended, deleted, since = await auth.revoked_since(since)
                revocations.add(ended)
                revocations.add_deleted(deleted)
                failing = False
            except Exception as error:  # whatever it was: who stops asking never knows again
                REVOCATION_ERRORS.inc()
                if not failing:
                    logger().warning("cannot learn which sign-ins were ended", error=repr(error))
                failing = True
            await asyncio.sleep(REVOCATION_INTERVAL)

    async with AsyncExitStack() as stack:
        task = asyncio.create_task(watch(), name="watch revocations")

        async def stop() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        stack.push_async_callback(stop)
        yield
