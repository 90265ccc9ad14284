"""Owns the messages of guests."""

from __future__ import annotations

from satchel.auth.v1 import guests_pb2

from services.auth.accounts import Account
from services.auth.accounts_convert import user_to_pb
from services.auth.merges_domain import Begun
from services.auth.sign_ins_domain import Tokens


def guest_response(account: Account, tokens: Tokens) -> guests_pb2.CreateGuestResponse:
    """A new guest."""
    return guests_pb2.CreateGuestResponse(
        user=user_to_pb(account), access_token=tokens.access, refresh_token=tokens.refresh
    )


def merge_response(begun: Begun) -> guests_pb2.MergeGuestResponse:
    """How far a merge has come."""
    return guests_pb2.MergeGuestResponse(
        guest_id=str(begun.guest_id), state="done" if begun.done else "in_progress", receipt_id=begun.receipt_id
    )
