"""The floor under GetMe: the least gRPC server that gives the same answer, `python -m bench.echo PORT`."""

from __future__ import annotations

import sys
from typing import Any
from uuid import UUID

import grpc
import uvloop
from google.protobuf.struct_pb2 import NULL_VALUE, Value
from google.protobuf.timestamp_pb2 import Timestamp
from satchel.auth.v1 import auth_pb2, auth_pb2_grpc

# As long as the answer that a measured account gets.
ANSWER = auth_pb2.GetMeResponse(
    id=str(UUID(int=0)),
    email=f"{UUID(int=0).hex}@example.com",
    tier="free",
    subscription_status="inactive",
    subscription_expires_at=Value(null_value=NULL_VALUE),
    created_at=Timestamp(seconds=1_800_000_000, nanos=123_456_000),
)


class EchoServicer(auth_pb2_grpc.AuthServiceServicer):
    """GetMe with nothing behind it: no interceptor, no identity, no database."""

    async def GetMe(
        self, request: auth_pb2.GetMeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> auth_pb2.GetMeResponse:
        return ANSWER


async def serve(port: int) -> None:
    server = grpc.aio.server()
    auth_pb2_grpc.add_AuthServiceServicer_to_server(EchoServicer(), server)  # type: ignore[abstract]  # one rpc is all
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
