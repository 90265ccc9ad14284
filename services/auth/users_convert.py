"""Owns how an account looks to those who run its tenant."""

from __future__ import annotations

from typing import Any

from satchel.auth.v1 import users_pb2 as pb

from runtime.clock import to_timestamp
from services.auth.accounts import Account


def create_response(account: Account) -> pb.CreateUserResponse:
    """An account that was created."""
    return pb.CreateUserResponse(**_values(account))


def get_response(account: Account) -> pb.GetUserResponse:
    """An account that was asked for."""
    return pb.GetUserResponse(**_values(account))


def find_response(account: Account) -> pb.FindUserResponse:
    """An account that was found."""
    return pb.FindUserResponse(**_values(account))


def _values(account: Account) -> dict[str, Any]:
    return {
        "id": str(account.id),
        "email": account.email,
        "tenant_id": account.tenant_id,
        "role": account.role,
        "created_at": to_timestamp(account.create_time),
    }
