"""Owns the two shapes of second factors: domain values and messages."""

from __future__ import annotations

from google.protobuf.struct_pb2 import NULL_VALUE, Value
from satchel.auth.v1 import second_factors_pb2 as pb

from runtime.clock import format_time
from services.auth.second_factors_domain import Begun, SecondFactorState


def state_response(state: SecondFactorState) -> pb.GetSecondFactorResponse:
    """A second factor as its owner sees it."""
    enabled_at = state.enable_time
    return pb.GetSecondFactorResponse(
        enabled=enabled_at is not None,
        enabled_at=Value(null_value=NULL_VALUE) if enabled_at is None else Value(string_value=format_time(enabled_at)),
        recovery_codes_left=state.recovery_codes_left,
    )


def begin_response(begun: Begun) -> pb.BeginSecondFactorResponse:
    """What an app is given."""
    return pb.BeginSecondFactorResponse(secret=begun.secret, otpauth_uri=begun.uri)
