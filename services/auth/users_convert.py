"""Owns how an account looks to those who run its tenant."""

from __future__ import annotations

from typing import Any

from satchel.auth.v1 import users_pb2 as pb

from runtime.call import Role
from runtime.clock import to_timestamp
from services.auth.accounts import Account


def create_response(account: Account, role: Role) -> pb.CreateUserResponse:
    """An account that was created."""
    return pb.CreateUserResponse(**_values(account, role))


def get_response(account: Account, role: Role) -> pb.GetUserResponse:
    """An account that was asked for."""
    return pb.GetUserResponse(**_values(account, role))


def find_response(account: Account, role: Role) -> pb.FindUserResponse:
    """An account that was found."""
    return pb.FindUserResponse(**_values(account, role))


def _values(account: Account, role: Role) -> dict[str, Any]:
    return {
        "id": str(account.id),
        "email": account.email,
        "tenant_id": account.tenant_id,
        "role": role,
        "created_at": to_timestamp(account.create_time),
    }
