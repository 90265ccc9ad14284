"""Owns linked accounts as messages."""

from __future__ import annotations

from satchel.garmin.v1 import garmin_pb2 as pb

from services.garmin.accounts_domain import LinkedAccount

LINKED = "Garmin account linked successfully."


def link_response(mfa_required: bool) -> pb.LinkAccountResponse:
    """The answer to a sign-in."""
    return pb.LinkAccountResponse(message="" if mfa_required else LINKED, mfa_required=mfa_required)


def get_response(account: LinkedAccount | None) -> pb.GetLinkResponse:
    """A linked account, or that there is none."""
    if account is None:
        return pb.GetLinkResponse()
    link = account.link
    response = pb.GetLinkResponse(
        linked=True,
        garmin_username=account.username,
        needs_sign_in=link.needs_sign_in,
        interval_hours=link.interval_hours,
    )
    response.linked_at.FromDatetime(link.linked_at)
    if link.next_sync_at is not None:
        response.next_sync_at.FromDatetime(link.next_sync_at)
    return response
