"""Several replicas of services without an edge, called as the edge calls them: with the client's address named."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from satchel.auth.v1 import auth_pb2, auth_pb2_grpc, devices_pb2_grpc, security_events_pb2_grpc

from runtime.config import Config
from runtime.server import Service, serving
from services.auth.app import service as auth
from tests.factories import PASSWORD


@dataclass(frozen=True)
class Replica:
    """One auth service."""

    config: Config
    accounts: auth_pb2_grpc.AuthServiceStub
    devices: devices_pb2_grpc.DeviceServiceStub
    events: security_events_pb2_grpc.SecurityEventServiceStub


@asynccontextmanager
async def replica(config: Config, services: Mapping[str, Service] | None = None) -> AsyncIterator[Replica]:
    """An auth service under `config` for as long as the block runs."""
    async with (
        serving(config, services or {"auth": auth}),
        grpc.aio.insecure_channel(config.auth_address) as channel,
    ):
        yield Replica(
            config,
            auth_pb2_grpc.AuthServiceStub(channel),
            devices_pb2_grpc.DeviceServiceStub(channel),
            security_events_pb2_grpc.SecurityEventServiceStub(channel),
        )


@asynccontextmanager
async def replicas(*configs: Config) -> AsyncIterator[list[Replica]]:
    """An auth service under each of `configs`."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(replica(config)) for config in configs]


@dataclass(frozen=True)
class Guest:
    """Somebody at an address, with or without a device id, who tries to get into an account."""

    replica: Replica
    ip: str
    device_id: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        named = (("x-device-id", self.device_id),) if self.device_id else ()
        return (("x-envoy-external-address", self.ip), *named)

    async def sign_up(self, email: str = "") -> auth_pb2.SignUpResponse:
        request = auth_pb2.SignUpRequest(email=email or f"{uuid4().hex}@example.com", password=PASSWORD)
        answer: auth_pb2.SignUpResponse = await self.replica.accounts.SignUp(request, metadata=self.metadata)
        return answer

    async def sign_in(self, email: str, password: str = PASSWORD) -> Any:
        """The answer, or the refusal."""
        request = auth_pb2.SignInRequest(email=email, password=password)
        try:
            return await self.replica.accounts.SignIn(request, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            return Refusal(error)


class Refusal:
    """A refusal taken apart."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an error is its call
        assert status is not None, error
        self.message = str(error.details())
        self.headers = {key: str(value) for key, value in error.trailing_metadata() or ()}
        self.reason, self.wait = "", 0.0
        for detail in status.details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                self.reason = info.reason
            if detail.Unpack(retry):
                self.wait = retry.retry_delay.ToTimedelta().total_seconds()


def bearer(access_token: str) -> tuple[tuple[str, str], ...]:
    """For calls with a token."""
    return (("authorization", f"Bearer {access_token}"),)
