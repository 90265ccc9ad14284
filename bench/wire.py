"""The gRPC side of the load: channels with a connection each, and the accounts that call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import grpc
from satchel.auth.v1 import auth_pb2, auth_pb2_grpc

Metadata = tuple[tuple[str, str], ...]

PASSWORD = "correct horse battery"

# By default channels of one process to one address share a connection, and phones don't.
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


@asynccontextmanager
async def channels(address: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """`count` connected channels to host:port for as long as the block runs."""
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=_OWN_CONNECTION))
            for _ in range(count)
        ]
        for channel in opened:
            await channel.channel_ready()
        yield opened


async def sign_up(address: str, count: int) -> list[str]:
    """The access tokens of `count` new accounts."""
    async with channels(address, 1) as (channel,):
        stub = auth_pb2_grpc.AuthServiceStub(channel)
        # One by one: hashing a password is meant to take long, and many at once on a busy machine would time out.
        requests = [auth_pb2.SignUpRequest(email=f"{uuid4().hex}@example.com", password=PASSWORD) for _ in range(count)]
        return [(await stub.SignUp(request)).access_token for request in requests]


def metadata(token: str) -> Metadata:
    """What a signed-in caller sends with every call."""
    return (("authorization", f"Bearer {token}"),)
