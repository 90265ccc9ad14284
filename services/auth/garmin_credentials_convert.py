"""Owns the two shapes of Garmin credentials: domain values and messages."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from satchel.auth.v1 import garmin_credentials_pb2 as pb

from runtime.clock import from_timestamp, to_timestamp
from services.auth.garmin_credentials_domain import MAX_CHARS, GarminCredentials


def texts_from_pb(message: pb.CreateGarminCredentialsRequest | pb.UpdateGarminCredentialsRequest) -> dict[str, str]:
    """The texts that were sent; of an update also empty ones."""
    return {field.name: value for field, value in message.ListFields() if field.name in MAX_CHARS}


def expire_time_from_pb(
    message: pb.CreateGarminCredentialsRequest | pb.UpdateGarminCredentialsRequest,
) -> datetime | None:
    """When the access token ends, if that was sent. Raises Failure(FIELD_INVALID)."""
    if not message.HasField("token_expiration_date"):
        return None
    return from_timestamp("token_expiration_date", message.token_expiration_date)


def create_response(credentials: GarminCredentials) -> pb.CreateGarminCredentialsResponse:
    """Credentials that were stored."""
    return pb.CreateGarminCredentialsResponse(**_values(credentials))


def update_response(credentials: GarminCredentials) -> pb.UpdateGarminCredentialsResponse:
    """Credentials that were changed."""
    return pb.UpdateGarminCredentialsResponse(**_values(credentials))


def get_response(credentials: GarminCredentials) -> pb.GetGarminCredentialsResponse:
    """Credentials that were asked for."""
    return pb.GetGarminCredentialsResponse(**_values(credentials))


def _values(credentials: GarminCredentials) -> dict[str, Any]:
    ends = credentials.expire_time
    return {
        "user_id": str(credentials.account_id),
        **credentials.texts,
        "token_expiration_date": to_timestamp(ends) if ends else None,
        "created_at": to_timestamp(credentials.create_time),
        "updated_at": to_timestamp(credentials.update_time),
    }
