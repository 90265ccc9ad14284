"""Owns the rpcs of passwords: unpack, call, pack."""

from __future__ import annotations

from typing import Any, Final

from grpc.aio import ServicerContext
from satchel.auth.v1 import passwords_pb2, passwords_pb2_grpc

from runtime.call import current, principal
from services.auth.passwords_domain import PasswordChanges

Context = ServicerContext[Any, Any]

ASKED: Final = "If an account has this address, a code is on its way to it."
RESET: Final = "The password was changed. Sign in with it."
CHANGED: Final = "The password was changed. Other devices were signed out."


class PasswordServicer(passwords_pb2_grpc.PasswordServiceServicer):
    """satchel.auth.v1.PasswordService."""

    def __init__(self, passwords: PasswordChanges) -> None:
        self._passwords = passwords

    async def RequestPasswordReset(
        self, request: passwords_pb2.RequestPasswordResetRequest, context: Context
    ) -> passwords_pb2.RequestPasswordResetResponse:
        await self._passwords.request_reset(request.email)
        return passwords_pb2.RequestPasswordResetResponse(message=ASKED)

    async def ResetPassword(
        self, request: passwords_pb2.ResetPasswordRequest, context: Context
    ) -> passwords_pb2.ResetPasswordResponse:
        ended = await self._passwords.reset(
            email=request.email, code=request.code, new_password=request.new_password, ip=current.get().client_ip
        )
        return passwords_pb2.ResetPasswordResponse(message=RESET, signed_out=ended)

    async def ChangePassword(
        self, request: passwords_pb2.ChangePasswordRequest, context: Context
    ) -> passwords_pb2.ChangePasswordResponse:
        ended = await self._passwords.change(
            principal(),
            current_password=request.current_password,
            new_password=request.new_password,
            code=request.code,
            ip=current.get().client_ip,
        )
        return passwords_pb2.ChangePasswordResponse(message=CHANGED, signed_out=ended)
