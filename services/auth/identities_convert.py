"""Owns the two shapes of identities: domain values and messages."""

from __future__ import annotations

from collections.abc import Iterable

from satchel.auth.v1 import sso_pb2

from runtime.clock import to_timestamp
from services.auth.accounts import Account
from services.auth.accounts_convert import user_to_pb
from services.auth.identities import Identity
from services.auth.sign_ins_domain import Tokens


def sign_in_response(account: Account, tokens: Tokens, is_new: bool) -> sso_pb2.SignInWithProviderResponse:
    """The answer to a sign-in by id token."""
    return sso_pb2.SignInWithProviderResponse(
        user=user_to_pb(account),
        access_token=tokens.access,
        refresh_token=tokens.refresh,
        is_new_user=is_new,
    )


def identity_to_pb(identity: Identity) -> sso_pb2.Identity:
    """An identity as the owner of its account sees it."""
    return sso_pb2.Identity(
        provider=identity.provider,
        subject=identity.subject,
        email=identity.email,
        email_verified=identity.email_verified,
        full_name=identity.full_name,
        created_at=to_timestamp(identity.create_time),
    )


def list_response(identities: Iterable[Identity]) -> sso_pb2.ListIdentitiesResponse:
    """The identities of an account."""
    return sso_pb2.ListIdentitiesResponse(identities=[identity_to_pb(one) for one in identities])
