"""Owns the messages of guests."""

from __future__ import annotations

from satchel.auth.v1 import guests_pb2

from services.auth.accounts import Account
from services.auth.accounts_convert import user_to_pb
from services.auth.sign_ins_domain import Tokens


def guest_response(account: Account, tokens: Tokens) -> guests_pb2.CreateGuestResponse:
    """A new guest."""
    return guests_pb2.CreateGuestResponse(
        user=user_to_pb(account), access_token=tokens.access, refresh_token=tokens.refresh
    )
