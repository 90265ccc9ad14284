"""Owns the shapes of sync: JSON documents and messages on one side, domain values on the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import orjson
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.timestamp_pb2 import Timestamp
from satchel.sessions.v1 import sync_pb2 as pb

from runtime.clock import format_time, text_of, to_timestamp
from runtime.documents import struct_from_json, struct_to_json
from runtime.errors import Failure, invalid
from services.sessions.adoptions_domain import Adopted
from services.sessions.changes_domain import Notice, Receipt
from services.sessions.conflicts_domain import OPTIONS, DryRun, Inspected, Log, LoggedConflict, Resolved
from services.sessions.erasures_domain import Erased
from services.sessions.policies_domain import Policy, Winner
from services.sessions.records_domain import Record
from services.sessions.stored_records_domain import Given
from services.sessions.sync_domain import Answer, Page, Pushed

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

JSON: Final = "application/json"
# A push of small changes may meet a thousand large records.
MAX_SERVER_DATA_BYTES: Final = 4 * 1024 * 1024


def change_from_json(item: Any, group: Any) -> Pushed:
    """A change of a JSON document. Raises Failure(FIELD_INVALID) for what is no object."""
    if not isinstance(item, dict):
        raise invalid("", "must be an object", "INVALID_TYPE")
    own = item.get("atomic_group")
    return Pushed(
        domain=item.get("domain"),
        id=item.get("id"),
        base_version=item.get("base_version"),
        operation=item.get("operation"),
        data=item.get("data"),
        client_time=item.get("client_time"),
        group=group if own is None or own == "" else own,
    )


def change_from_pb(message: pb.Change, group: str) -> Pushed:
    """A change of a message; data that is no JSON stays a text, which is refused under the change's id and group."""
    return Pushed(
        message.domain,
        message.id,
        message.base_version if message.HasField("base_version") else None,
        message.operation,
        _data(message.data),
        text_of("client_time", message.client_time) if message.HasField("client_time") else None,
        message.atomic_group or group,
    )


def given_from_pb(message: pb.StoredRecord) -> Given:
    """A record of another service; data that is no JSON stays a text, which is refused under the record's id."""
    return Given(message.domain, message.id, _data(message.data), message.deleted)


def push_response(answer: Answer) -> pb.PushChangesResponse:
    """The answer to a push."""
    response = pb.PushChangesResponse(server_time=to_timestamp(answer.server_time))
    add_receipts(response.receipts, answer)
    return response


def add_receipts(receipts: RepeatedCompositeFieldContainer[pb.Receipt], answer: Answer) -> None:
    """Adds the receipts of a push to a list of a message."""
    for receipt, server_data in _with_server_data(answer.receipts):
        added, failure, notice = receipts.add(), receipt.failure, receipt.notice
        (added.domain, added.id), added.status, added.version = receipt.key, receipt.status, receipt.version
        if failure is not None:
            values = _failure_values(failure)
            added.reason, added.field, added.message = values["reason"], values["field"], values["message"]
        if notice is not None:
            shown = _notice_values(receipt, notice, server_data)
            added.conflict.CopyFrom(pb.ConflictNotice(**shown, server_data=(server_data or b"").decode()))


def store_response(answer: Answer) -> pb.StoreRecordsResponse:
    """The answer to another service."""
    response = pb.StoreRecordsResponse(server_time=to_timestamp(answer.server_time))
    add_receipts(response.receipts, answer)
    return response


def push_document(answer: Answer) -> HttpBody:
    """The answer to a push as a JSON document."""
    receipts = [_receipt_to_json(receipt, raw) for receipt, raw in _with_server_data(answer.receipts)]
    document = {"receipts": receipts, "server_time": format_time(answer.server_time)}
    return HttpBody(content_type=JSON, data=orjson.dumps(document))


def pull_response(page: Page) -> pb.PullChangesResponse:
    """A stretch of the feed."""
    response = pb.PullChangesResponse(next_cursor=page.next_cursor, has_more=page.has_more)
    add_entries(response.changes, page)
    return response


def add_entries(changes: RepeatedCompositeFieldContainer[pb.FeedEntry], page: Page) -> None:
    """Adds the page's entries to a list of a message, field by field: a third of the time of a constructor each."""
    last, stamp = None, Timestamp()
    for _, domain, id, version, deleted, raw, update_time in page.entries:
        if update_time != last:  # what was pushed together was stored at one time
            last, stamp = update_time, to_timestamp(update_time)
        entry = changes.add()
        entry.domain, entry.id, entry.version, entry.deleted, entry.data = domain, id, version, deleted, raw
        entry.update_time.CopyFrom(stamp)


def pull_document(page: Page) -> HttpBody:
    """A stretch of the feed as a JSON document; the data goes in as it was stored, unread."""
    changes = [
        {
            "domain": one.domain,
            "id": one.id,
            "version": one.version,
            "deleted": one.deleted,
            "data": orjson.Fragment(one.raw),
            "update_time": format_time(one.update_time),
        }
        for one in page.entries
    ]
    document = {"changes": changes, "next_cursor": page.next_cursor, "has_more": page.has_more}
    return HttpBody(content_type=JSON, data=orjson.dumps(document))


def policy_response(tenant_id: int, domain: str, policy: Policy) -> pb.GetPolicyResponse:
    """A policy."""
    return pb.GetPolicyResponse(**_policy_values(tenant_id, domain, policy))


def policy_update_response(
    tenant_id: int, domain: str, policy: Policy, dry_run: DryRun | None
) -> pb.UpdatePolicyResponse:
    """A policy that was set, or with `dry_run` one that was only tried."""
    return pb.UpdatePolicyResponse(
        **_policy_values(tenant_id, domain, policy), dry_run=None if dry_run is None else _dry_run(dry_run)
    )


def log_response(log: Log) -> pb.ListConflictsResponse:
    """A stretch of the log."""
    return pb.ListConflictsResponse(
        conflicts=[_logged(conflict) for conflict in log.conflicts],
        total=log.total,
        conflict_rate_pct=log.rate_pct,
        next_page_token=log.next_token,
    )


def conflict_response(inspected: Inspected) -> pb.GetConflictResponse:
    """A conflict with both sides."""
    conflict, record = inspected.conflict, inspected.record
    return pb.GetConflictResponse(
        conflict=_logged(conflict),
        server_data=_text(conflict.server.data),
        client_data=_text(conflict.client.data),
        server_time=to_timestamp(conflict.server.time),
        client_time=to_timestamp(conflict.client.time),
        record=None if record is None else _entry(record),
    )


def client_data_from_pb(request: pb.ResolveConflictRequest) -> dict[str, Any] | None:
    """What the record is to hold, if the request says."""
    return struct_to_json(request.client_data) if request.HasField("client_data") else None


def resolve_response(resolved: Resolved) -> pb.ResolveConflictResponse:
    """A decision."""
    return pb.ResolveConflictResponse(
        conflict_id=str(resolved.conflict_id),
        resolution_result="resolved",
        winning_version=str(resolved.winner),
        version=resolved.version,
    )


def conflict_to_pb(conflict: LoggedConflict) -> pb.ConflictNotice:
    """A conflict as a device is told of it."""
    is_open = conflict.winner is Winner.NONE
    return pb.ConflictNotice(
        conflict_id=str(conflict.id),
        domain=conflict.key.domain,
        mobile_id=conflict.key.id,
        server_version=conflict.server_version,
        client_version=conflict.client_version,
        server_data=_text(conflict.server.data),
        resolution_options=OPTIONS if is_open else (),
    )


def _text(data: dict[str, Any] | None) -> str:
    return "" if data is None else orjson.dumps(data).decode()


def _entry(record: Record) -> pb.FeedEntry:
    return pb.FeedEntry(
        domain=record.key.domain,
        id=record.key.id,
        version=record.version,
        deleted=record.deleted,
        data=_text(record.data),
        update_time=to_timestamp(record.update_time),
    )


def _data(text: str) -> Any:
    try:
        return orjson.loads(text) if text else None
    except orjson.JSONDecodeError:
        return text


def _with_server_data(receipts: Iterable[Receipt]) -> Iterator[tuple[Receipt, bytes | None]]:
    """Each receipt with the server's content that its conflict shows; None from where the answer would be too large."""
    size = 0
    for receipt in receipts:
        data = receipt.notice.server_data if receipt.notice else None
        raw = b"" if data is None else orjson.dumps(data)
        size += len(raw)
        yield receipt, raw if size <= MAX_SERVER_DATA_BYTES else None


def erased_response(erased: Erased) -> pb.EraseUserResponse:
    """What an erasure came to."""
    return pb.EraseUserResponse(**asdict(erased))


def adopted_response(adopted: Adopted) -> pb.AdoptRecordsResponse:
    """What an adoption came to."""
    return pb.AdoptRecordsResponse(**asdict(adopted))


def _receipt_to_json(receipt: Receipt, server_data: bytes | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "domain": receipt.key.domain,
        "id": receipt.key.id,
        "status": receipt.status,
        "version": receipt.version,
    }
    if receipt.failure is not None:
        shown.update(_failure_values(receipt.failure))
    if receipt.notice is not None:
        values = _notice_values(receipt, receipt.notice, server_data)
        if not values["server_data_omitted"]:
            del values["server_data_omitted"]
        shown["conflict"] = {**values, "server_data": orjson.Fragment(server_data) if server_data else None}
    return shown


def _failure_values(failure: Failure) -> dict[str, str]:
    return {
        "reason": failure.reason.name,
        "field": failure.violations[0].field if failure.violations else "",
        "message": failure.message,
    }


def _notice_values(receipt: Receipt, notice: Notice, server_data: bytes | None) -> dict[str, Any]:
    open_to: Sequence[str] = OPTIONS if notice.is_open else ()
    return {
        "conflict_id": str(notice.conflict_id),
        "domain": receipt.key.domain,
        "mobile_id": receipt.key.id,
        "server_version": notice.server_version,
        "client_version": notice.client_version,
        "resolution_options": list(open_to),
        "server_data_omitted": server_data is None,
    }


def _policy_values(tenant_id: int, domain: str, policy: Policy) -> dict[str, Any]:
    return {
        "tenant_id": tenant_id,
        "domain": domain,
        "resolution_policy": str(policy.strategy),
        "auto_resolve": policy.auto_resolve,
        "notify_on_conflict": policy.notify_on_conflict,
    }


def _dry_run(dry_run: DryRun) -> pb.DryRun:
    winners = dry_run.winners
    return pb.DryRun(
        conflicts=winners.total(),
        client=winners[Winner.CLIENT],
        server=winners[Winner.SERVER],
        merged=winners[Winner.MERGED],
        manual=winners[Winner.NONE],
        changed=dry_run.changed,
    )


def _logged(conflict: LoggedConflict) -> pb.LoggedConflict:
    return pb.LoggedConflict(
        id=str(conflict.id),
        mobile_id=conflict.key.id,
        domain=conflict.key.domain,
        server_version=conflict.server_version,
        client_version=conflict.client_version,
        resolution_strategy=str(conflict.strategy),
        resolution_result=conflict.result,
        winning_version=str(conflict.winner),
        created_at=to_timestamp(conflict.create_time),
        losing_data=struct_from_json(conflict.losing_data),
        user_id=str(conflict.user_id),
    )
