"""Owns the rpcs of second factors: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.auth.v1 import second_factors_pb2 as pb
from satchel.auth.v1 import second_factors_pb2_grpc as pb_grpc

from runtime.call import principal
from services.auth import second_factors_convert as convert
from services.auth.second_factors_domain import SecondFactors

Context = ServicerContext[Any, Any]


class SecondFactorServicer(pb_grpc.SecondFactorServiceServicer):
    """satchel.auth.v1.SecondFactorService."""

    def __init__(self, second_factors: SecondFactors) -> None:
        self._second_factors = second_factors

    async def GetSecondFactor(self, request: pb.GetSecondFactorRequest, context: Context) -> pb.GetSecondFactorResponse:
        return convert.state_response(await self._second_factors.state(principal()))

    async def BeginSecondFactor(
        self, request: pb.BeginSecondFactorRequest, context: Context
    ) -> pb.BeginSecondFactorResponse:
        return convert.begin_response(await self._second_factors.begin(principal(), request.password))

    async def ConfirmSecondFactor(
        self, request: pb.ConfirmSecondFactorRequest, context: Context
    ) -> pb.ConfirmSecondFactorResponse:
        codes = await self._second_factors.confirm(principal(), request.code)
        return pb.ConfirmSecondFactorResponse(recovery_codes=codes)

    async def DisableSecondFactor(
        self, request: pb.DisableSecondFactorRequest, context: Context
    ) -> pb.DisableSecondFactorResponse:
        await self._second_factors.disable(principal(), request.code, request.password)
        return pb.DisableSecondFactorResponse(enabled=False)

    async def CreateRecoveryCodes(
        self, request: pb.CreateRecoveryCodesRequest, context: Context
    ) -> pb.CreateRecoveryCodesResponse:
        codes = await self._second_factors.renew_recovery_codes(principal(), request.code)
        return pb.CreateRecoveryCodesResponse(recovery_codes=codes)
