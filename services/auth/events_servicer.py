"""Owns the rpcs of security events: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.auth.v1 import security_events_pb2 as pb
from satchel.auth.v1 import security_events_pb2_grpc as pb_grpc

from runtime.call import principal
from services.auth import events_convert as convert
from services.auth.events_domain import SecurityEvents

Context = ServicerContext[Any, Any]


class SecurityEventServicer(pb_grpc.SecurityEventServiceServicer):
    """satchel.auth.v1.SecurityEventService."""

    def __init__(self, events: SecurityEvents) -> None:
        self._events = events

    async def ListSecurityEvents(
        self, request: pb.ListSecurityEventsRequest, context: Context
    ) -> pb.ListSecurityEventsResponse:
        page = await self._events.own(principal(), kind=request.kind, size=request.page_size, token=request.page_token)
        return convert.list_response(page)

    async def ListTenantSecurityEvents(
        self, request: pb.ListTenantSecurityEventsRequest, context: Context
    ) -> pb.ListTenantSecurityEventsResponse:
        page = await self._events.tenant(
            principal(),
            user_id=request.user_id,
            kind=request.kind,
            since=request.since,
            size=request.page_size,
            token=request.page_token,
        )
        return convert.list_tenant_response(page)
