"""Owns the two shapes of security events: domain values and messages."""

from __future__ import annotations

from satchel.auth.v1 import security_events_pb2 as pb

from runtime.clock import to_timestamp
from services.auth.events_domain import LoggedEvent, Page


def event_to_pb(event: LoggedEvent) -> pb.SecurityEvent:
    """An event as it is read."""
    return pb.SecurityEvent(
        id=str(event.id),
        time=to_timestamp(event.time),
        kind=event.kind,
        user_id=str(event.account_id or ""),
        sign_in_id=str(event.sign_in_id or ""),
        actor=event.actor,
        ip=event.ip,
        user_agent=event.user_agent,
        request_id=event.request_id,
        count=event.count,
        detail={name: str(value) for name, value in event.detail.items()},
    )


def list_response(page: Page) -> pb.ListSecurityEventsResponse:
    """The answer to a list of one account's."""
    return pb.ListSecurityEventsResponse(
        events=[event_to_pb(event) for event in page.events], next_page_token=page.next_token
    )


def list_tenant_response(page: Page) -> pb.ListTenantSecurityEventsResponse:
    """The answer to a list of a tenant's."""
    return pb.ListTenantSecurityEventsResponse(
        events=[event_to_pb(event) for event in page.events], next_page_token=page.next_token
    )
