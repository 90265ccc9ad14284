"""Owns the two shapes of accounts and tokens: domain values and messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from uuid import UUID

from google.protobuf.struct_pb2 import NULL_VALUE, Value
from satchel.auth.v1 import auth_pb2

from runtime.clock import format_time, to_timestamp
from services.auth.accounts import Account, Subscription
from services.auth.deletions_domain import Deleted
from services.auth.sign_ins_domain import Tokens


def user_to_pb(account: Account) -> auth_pb2.User:
    """An account as its owner sees it."""
    return auth_pb2.User(
        id=str(account.id),
        email=account.email,
        tier=account.subscription.tier,
        created_at=to_timestamp(account.create_time),
        is_guest=account.is_guest,
    )


def sign_up_response(account: Account, tokens: Tokens) -> auth_pb2.SignUpResponse:
    """The answer to a sign-up."""
    return auth_pb2.SignUpResponse(user=user_to_pb(account), access_token=tokens.access, refresh_token=tokens.refresh)


def sign_in_response(account: Account, tokens: Tokens) -> auth_pb2.SignInResponse:
    """The answer to a sign-in."""
    return auth_pb2.SignInResponse(user=user_to_pb(account), access_token=tokens.access, refresh_token=tokens.refresh)


def me_response(account: Account) -> auth_pb2.GetMeResponse:
    """An account with its subscription."""
    return auth_pb2.GetMeResponse(
        id=str(account.id),
        email=account.email,
        tier=account.subscription.tier,
        subscription_status=account.subscription.status,
        subscription_expires_at=_time_or_null(account.subscription.end_time),
        created_at=to_timestamp(account.create_time),
        email_verified=account.email_verify_time is not None,
        is_guest=account.is_guest,
    )


def delete_response(deleted: Deleted) -> auth_pb2.DeleteMeResponse:
    """What is left of an account."""
    return auth_pb2.DeleteMeResponse(
        id=str(deleted.account_id), deleted_at=to_timestamp(deleted.delete_time), receipt_id=deleted.receipt_id
    )


def subscription_response(subscription: Subscription) -> auth_pb2.GetSubscriptionStatusResponse:
    """A subscription."""
    return auth_pb2.GetSubscriptionStatusResponse(
        tier=subscription.tier,
        status=subscription.status,
        current_period_end=_time_or_null(subscription.end_time),
        cancel_at_period_end=subscription.cancel_at_period_end,
    )


def jwks_response(keys: Iterable[Mapping[str, str]]) -> auth_pb2.GetJwksResponse:
    """Public keys."""
    return auth_pb2.GetJwksResponse(keys=[auth_pb2.JsonWebKey(**key) for key in keys])


def revoked_response(
    ended: Iterable[UUID], next_since: datetime, deleted: Iterable[UUID]
) -> auth_pb2.ListRevokedSignInsResponse:
    """Ended sign-ins, and users whom other issuers may not know to be deleted."""
    return auth_pb2.ListRevokedSignInsResponse(
        sign_in_ids=[str(one) for one in ended],
        next_since=to_timestamp(next_since),
        deleted_user_ids=[str(one) for one in deleted],
    )


def _time_or_null(time: datetime | None) -> Value:
    return Value(null_value=NULL_VALUE) if time is None else Value(string_value=format_time(time))
