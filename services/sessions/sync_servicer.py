"""Owns the rpcs of sync: unpack, call, pack."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from google.api.httpbody_pb2 import HttpBody
from grpc.aio import ServicerContext
from satchel.sessions.v1 import sync_pb2 as pb
from satchel.sessions.v1 import sync_pb2_grpc as pb_grpc

from runtime.call import answer_headers, header, idempotency_key, principal, watch
from runtime.documents import counted, items_and_more
from runtime.errors import Failure
from runtime.outcomes import Tally, carried, syncs
from services.sessions import exports_convert, streams_convert
from services.sessions import sync_convert as convert
from services.sessions.adoptions_domain import Adoptions
from services.sessions.batches import capture
from services.sessions.conflicts_domain import Conflicts
from services.sessions.erasures_domain import Erasures
from services.sessions.exports_domain import Exports
from services.sessions.policies_domain import parse_policy
from services.sessions.stored_records_domain import StoredRecords
from services.sessions.streams_domain import Streams
from services.sessions.sync_domain import Answer, Page, Pushed, Sync

Context = ServicerContext[Any, Any]


class SyncServicer(pb_grpc.SyncServiceServicer):
    """satchel.sessions.v1.SyncService."""

    def __init__(
        self,
        sync: Sync,
        conflicts: Conflicts,
        streams: Streams,
        exports: Exports,
        erasures: Erasures,
        stored_records: StoredRecords,
        adoptions: Adoptions,
    ) -> None:
        self._sync = sync
        self._conflicts = conflicts
        self._streams = streams
        self._exports = exports
        self._erasures = erasures
        self._stored_records = stored_records
        self._adoptions = adoptions

    async def Sync(
        self, request_iterator: AsyncIterator[pb.SyncRequest], context: Context
    ) -> AsyncIterator[pb.SyncResponse]:
        said = streams_convert.said_from_pb(request_iterator)
        async with aclosing(self._streams.talk(principal(), watch(), said)) as told:
            async for request_id, event in told:
                yield streams_convert.event_to_pb(request_id, event)

    @syncs()
    async def PushChanges(self, request: pb.PushChangesRequest, context: Context) -> pb.PushChangesResponse:
        group = request.atomic_group
        messages = counted(request.changes, "changes")
        pushed = capture(lambda message: convert.change_from_pb(message, group), messages)
        return convert.push_response(await self._push(pushed, ""))

    @syncs()
    async def PushChangesJson(self, request: pb.PushChangesJsonRequest, context: Context) -> HttpBody:
        found, rest = items_and_more(request.document.data, "changes")
        group = rest.get("atomic_group")
        pushed = capture(lambda item: convert.change_from_json(item, group), found)
        return convert.push_document(await self._push(pushed, group))

    async def _push(self, pushed: Sequence[Pushed | Failure], group: Any) -> Answer:
        carried(self._sync.tally_of(pushed))
        offset = self._sync.clock_offset(header("x-client-time"))
        answer = await self._sync.push(principal(), pushed, idempotency_key(), group=group, clock_offset=offset)
        carried(self._sync.tally(answer))
        return answer

    @syncs()
    async def PullChanges(self, request: pb.PullChangesRequest, context: Context) -> pb.PullChangesResponse:
        return convert.pull_response(await self._pull(request))

    @syncs()
    async def PullChangesJson(self, request: pb.PullChangesJsonRequest, context: Context) -> HttpBody:
        return convert.pull_document(await self._pull(request))

    async def _pull(self, request: pb.PullChangesRequest | pb.PullChangesJsonRequest) -> Page:
        page = await self._sync.pull(principal(), request.cursor, request.domains, request.limit)
        carried(Tally(page.domain))
        return page

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.GetPolicyResponse:
        policy = await self._conflicts.policy(principal(), request.tenant_id, request.domain)
        return convert.policy_response(request.tenant_id, request.domain, policy)

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, context: Context) -> pb.UpdatePolicyResponse:
        auto_resolve = request.auto_resolve if request.HasField("auto_resolve") else None
        policy = parse_policy(request.resolution_policy, auto_resolve, request.notify_on_conflict)
        place = principal(), request.tenant_id, request.domain, policy
        dry_run = await self._conflicts.dry_run(*place) if request.validate_only else None
        if dry_run is None:
            await self._conflicts.set_policy(*place)
        return convert.policy_update_response(request.tenant_id, request.domain, policy, dry_run)

    async def ListConflicts(self, request: pb.ListConflictsRequest, context: Context) -> pb.ListConflictsResponse:
        log = await self._conflicts.log(
            principal(),
            request.tenant_id,
            request.domain,
            request.since,
            request.page_size,
            request.page_token,
            result=request.resolution_result,
        )
        return convert.log_response(log)

    async def GetConflict(self, request: pb.GetConflictRequest, context: Context) -> pb.GetConflictResponse:
        return convert.conflict_response(await self._conflicts.inspect(principal(), request.conflict_id))

    async def ResolveConflict(self, request: pb.ResolveConflictRequest, context: Context) -> pb.ResolveConflictResponse:
        resolved = await self._conflicts.resolve(
            principal(), request.conflict_id, request.resolution, convert.client_data_from_pb(request)
        )
        return convert.resolve_response(resolved)

    async def ExportRecords(self, request: pb.ExportRecordsRequest, context: Context) -> AsyncIterator[HttpBody]:
        async with (
            aclosing(self._exports.everything(principal())) as items,
            aclosing(exports_convert.pieces(items)) as pieces,
        ):
            first = await anext(pieces)
            answer_headers(exports_convert.DISPOSITION)  # now that it is no refusal, which nobody wants as a file
            yield first
            async for piece in pieces:
                yield piece

    async def EraseUser(self, request: pb.EraseUserRequest, context: Context) -> pb.EraseUserResponse:
        return convert.erased_response(await self._erasures.erase(request.user_id))

    async def StoreRecords(self, request: pb.StoreRecordsRequest, context: Context) -> pb.StoreRecordsResponse:
        given = capture(convert.given_from_pb, counted(request.records, "records"))
        return convert.store_response(await self._stored_records.store(request.user_id, request.tenant_id, given))

    async def AdoptRecords(self, request: pb.AdoptRecordsRequest, context: Context) -> pb.AdoptRecordsResponse:
        return convert.adopted_response(
            await self._adoptions.adopt(request.guest_id, request.user_id, request.tenant_id)
        )
