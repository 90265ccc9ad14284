"""Owns how a device asks the server, call by call: in JSON, or over gRPC. Answers come in the model's words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import grpc
import httpx
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from satchel.sessions.v1 import sync_pb2 as pb
from satchel.sessions.v1 import sync_pb2_grpc as pb_grpc

from tests.convergence.ledger import Entry, Logged
from tests.convergence.model import Change, Data, Key, Notice, Receipt

# Long enough for a busy machine; a call that is cut ends at once.
DEADLINE = 20.0  # seconds

# A replica that stops cancels what it has not begun.
CANCELLED = 499  # nginx wrote it first, and Envoy makes it of what gRPC calls cancelled
_DECIDED = "decided already"
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class Lost(Exception):
    """No answer came, or none that says whether the call was heard."""


class Misused(Exception):
    """The idempotency key was used for something else."""


class TooLate(Exception):
    """The conflict was decided already."""


class Page(NamedTuple):
    """A stretch of the feed."""

    entries: list[Entry]
    cursor: str
    more: bool


class Door(Protocol):
    """What a device can ask. Every method raises Lost."""

    async def push(self, name: str, changes: Sequence[Change], shown: int | None) -> list[Receipt]:
        """Hands changes over under the idempotency key `name`; the phone's clock shows `shown`. Raises Misused."""

    async def decide(self, conflict_id: str, choice: str, merged: Data) -> int:
        """Decides a conflict; the record's version afterwards. Raises TooLate."""


class AskedDoor(Door, Protocol):
    """One that also tells what it is asked for; a stream tells by itself."""

    async def pull(self, cursor: str, limit: int) -> Page:
        """The next page behind `cursor`."""

    async def log(self) -> list[Logged]:
        """Every conflict in the log."""


class RestDoor:
    """JSON documents through the edge."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def push(self, name: str, changes: Sequence[Change], shown: int | None) -> list[Receipt]:
        document = {"changes": [_change_to_json(one) for one in changes]}
        headers = {"idempotency-key": name, **({} if shown is None else {"x-client-time": _iso(shown)})}
        answer = await self._call("POST", "/api/v1/sync/push", json=document, headers=headers)
        if answer.status_code == 409:
            raise Misused
        return [_receipt_from_json(one) for one in _body(answer)["receipts"]]

    async def pull(self, cursor: str, limit: int) -> Page:
        answer = _body(await self._call("GET", "/api/v1/sync/pull", params={"cursor": cursor, "limit": limit}))
        entries = [_entry(Key(one["domain"], one["id"]), one, one["data"]) for one in answer["changes"]]
        return Page(entries, answer["next_cursor"], answer["has_more"])

    async def decide(self, conflict_id: str, choice: str, merged: Data) -> int:
        request = {"resolution": choice, **({"client_data": merged} if choice == "merge" else {})}
        answer = await self._call("POST", f"/api/v1/sync/conflicts/{conflict_id}/resolve", json=request)
        if answer.status_code == 409 and _DECIDED in answer.text:
            raise TooLate
        return int(_body(answer)["version"])

    async def log(self) -> list[Logged]:
        conflicts: list[Any] = []
        token = ""
        while True:
            query = {"page_size": 500, "page_token": token}
            answer = _body(await self._call("GET", "/api/v1/sync/conflicts", params=query))
            conflicts += answer["conflicts"]
            if not (token := answer["next_page_token"]):
                assert answer["total"] == len(conflicts)
                return [_logged(one) for one in conflicts]

    async def _call(self, verb: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = await self._http.request(verb, path, **request)
        except httpx.TransportError as error:
            raise Lost from error
        if answer.status_code in (503, 504, CANCELLED):
            raise Lost(answer.text)
        return answer


class GrpcDoor:
    """Messages, through the edge or straight to a replica."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._stub = pb_grpc.SyncServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def push(self, name: str, changes: Sequence[Change], shown: int | None) -> list[Receipt]:
        said = () if shown is None else (("x-client-time", _iso(shown)),)
        request = pb.PushChangesRequest(changes=[change_to_pb(one) for one in changes], idempotency_key=name)
        try:
            answer = await self._call(self._stub.PushChanges, request, said)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.ABORTED:
                raise Misused from error
            raise
        return [receipt_from_pb(one) for one in answer.receipts]

    async def pull(self, cursor: str, limit: int) -> Page:
        answer = await self._call(self._stub.PullChanges, pb.PullChangesRequest(cursor=cursor, limit=limit))
        return Page([entry_from_pb(one) for one in answer.changes], answer.next_cursor, answer.has_more)

    async def decide(self, conflict_id: str, choice: str, merged: Data) -> int:
        request = pb.ResolveConflictRequest(conflict_id=conflict_id, resolution=choice)
        if choice == "merge":
            request.client_data.CopyFrom(json_format.ParseDict(merged, Struct()))
        try:
            return int((await self._call(self._stub.ResolveConflict, request)).version)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.ABORTED and _DECIDED in (error.details() or ""):
                raise TooLate from error
            raise

    async def log(self) -> list[Logged]:
        conflicts: list[Any] = []
        token = ""
        while True:
            answer = await self._call(
                self._stub.ListConflicts, pb.ListConflictsRequest(page_size=500, page_token=token)
            )
            conflicts += answer.conflicts
            if not (token := answer.next_page_token):
                assert answer.total == len(conflicts)
                return [logged_from_pb(one) for one in conflicts]

    async def _call(self, method: Any, request: Any, said: tuple[tuple[str, str], ...] = ()) -> Any:
        try:
            return await method(request, metadata=(*self._metadata, *said), timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            if error.code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.CANCELLED,
            ):
                raise Lost from error
            raise


@asynccontextmanager
async def rest_door(port: int, token: str) -> AsyncIterator[RestDoor]:
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=DEADLINE) as http:
        yield RestDoor(http)


@asynccontextmanager
async def grpc_channel(port: int) -> AsyncIterator[grpc.aio.Channel]:
    # A phone that lost its line comes back soon, and its connection is its own.
    reconnect = {"grpc.initial_reconnect_backoff_ms": 50, "grpc.min_reconnect_backoff_ms": 50}
    options = {**reconnect, "grpc.max_reconnect_backoff_ms": 200, "grpc.use_local_subchannel_pool": 1}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=list(options.items())) as channel:
        yield channel


@asynccontextmanager
async def grpc_door(port: int, token: str) -> AsyncIterator[GrpcDoor]:
    async with grpc_channel(port) as channel:
        yield GrpcDoor(channel, token)


def change_to_pb(change: Change) -> pb.Change:
    seconds, micros = divmod(change.time, 1_000_000)
    return pb.Change(
        domain=change.key.domain,
        id=change.key.id,
        base_version=change.base,
        operation="DELETE" if change.data is None else "UPSERT",
        data="" if change.data is None else json.dumps(change.data),
        client_time=Timestamp(seconds=seconds, nanos=micros * 1000),
        atomic_group=change.group,
    )


def receipt_from_pb(message: pb.Receipt) -> Receipt:
    notice = None
    if message.HasField("conflict"):
        said = message.conflict
        assert Key(said.domain, said.mobile_id) == Key(message.domain, message.id)
        notice = Notice(
            server_version=said.server_version,
            client_version=said.client_version,
            server_data=json.loads(said.server_data) if said.server_data else None,
            is_open=bool(said.resolution_options),
            conflict_id=said.conflict_id,
        )
    return Receipt(
        key=Key(message.domain, message.id),
        status=message.status,
        version=message.version,
        reason=message.reason,
        notice=notice,
    )


def entry_from_pb(message: pb.FeedEntry) -> Entry:
    said = {"version": message.version, "deleted": message.deleted}
    return _entry(Key(message.domain, message.id), said, json.loads(message.data))


def _change_to_json(change: Change) -> dict[str, Any]:
    return {
        "domain": change.key.domain,
        "id": change.key.id,
        "operation": "DELETE" if change.data is None else "UPSERT",
        "client_time": _iso(change.time),
        **({"base_version": change.base} if change.base is not None else {}),
        **({"data": change.data} if change.data is not None else {}),
        **({"atomic_group": change.group} if change.group else {}),
    }


def _iso(micros: int) -> str:
    seconds, rest = divmod(micros, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest).isoformat()


def _receipt_from_json(said: dict[str, Any]) -> Receipt:
    notice = None
    if "conflict" in said:
        conflict = said["conflict"]
        assert (conflict["domain"], conflict["mobile_id"]) == (said["domain"], said["id"])
        notice = Notice(
            server_version=conflict["server_version"],
            client_version=conflict["client_version"],
            server_data=conflict["server_data"],
            is_open=bool(conflict["resolution_options"]),
            conflict_id=conflict["conflict_id"],
        )
    return Receipt(
        key=Key(said["domain"], said["id"]),
        status=said["status"],
        version=said["version"],
        reason=said.get("reason", ""),
        notice=notice,
    )


def _entry(key: Key, said: dict[str, Any], data: dict[str, Any]) -> Entry:
    assert data == {} or not said["deleted"], "what is deleted holds nothing"
    return Entry(key, said["version"], None if said["deleted"] else data)


def logged_from_pb(message: pb.LoggedConflict) -> Logged:
    return _logged(
        json_format.MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    )


def _logged(said: dict[str, Any]) -> Logged:
    return Logged(
        said["id"],
        Key(said["domain"], said["mobile_id"]),
        said["resolution_strategy"],
        said["server_version"],
        said["client_version"],
        said["resolution_result"],
        said["winning_version"],
        said["losing_data"],
    )


def _body(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, f"{answer.status_code}: {answer.text}"
    return answer.json()
