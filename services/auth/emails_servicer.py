"""Owns the rpcs of addresses: unpack, call, pack."""

from __future__ import annotations

from typing import Any, Final

from grpc.aio import ServicerContext
from satchel.auth.v1 import emails_pb2, emails_pb2_grpc

from runtime.call import current, principal
from services.auth.emails_domain import Emails

Context = ServicerContext[Any, Any]

ASKED: Final = "A code is on its way to the account's address."
VERIFIED: Final = "The account's address is verified."
CHANGING: Final = "A code is on its way to the new address."


class EmailServicer(emails_pb2_grpc.EmailServiceServicer):
    """satchel.auth.v1.EmailService."""

    def __init__(self, emails: Emails) -> None:
        self._emails = emails

    async def RequestEmailVerification(
        self, request: emails_pb2.RequestEmailVerificationRequest, context: Context
    ) -> emails_pb2.RequestEmailVerificationResponse:
        verified = await self._emails.request_verification(principal())
        return emails_pb2.RequestEmailVerificationResponse(
            message=VERIFIED if verified else ASKED, email_verified=verified
        )

    async def ChangeEmail(
        self, request: emails_pb2.ChangeEmailRequest, context: Context
    ) -> emails_pb2.ChangeEmailResponse:
        await self._emails.change(principal(), new_email=request.new_email, password=request.password)
        return emails_pb2.ChangeEmailResponse(message=CHANGING)

    async def VerifyEmail(
        self, request: emails_pb2.VerifyEmailRequest, context: Context
    ) -> emails_pb2.VerifyEmailResponse:
        email = await self._emails.verify(principal(), code=request.code, ip=current.get().client_ip)
        return emails_pb2.VerifyEmailResponse(email=email, email_verified=True)
