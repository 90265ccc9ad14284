"""Owns the rpcs on other people's accounts: unpack, call, pack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext
from satchel.auth.v1 import users_pb2 as pb
from satchel.auth.v1 import users_pb2_grpc as pb_grpc

from runtime.call import Role, principal
from runtime.ids import parse_uuid
from services.auth import users_convert as convert
from services.auth.accounts import Account
from services.auth.users_domain import Users

Context = ServicerContext[Any, Any]


class UserServicer(pb_grpc.UserServiceServicer):
    """satchel.auth.v1.UserService."""

    def __init__(self, users: Users, role_of: Callable[[Account], Role]) -> None:
        """`role_of` is what an account signs in as."""
        self._users = users
        self._role_of = role_of

    async def CreateUser(self, request: pb.CreateUserRequest, context: Context) -> pb.CreateUserResponse:
        account = await self._users.create(
            principal(), email=request.email, password=request.password, tenant_id=request.tenant_id
        )
        return convert.create_response(account, self._role_of(account))

    async def GetUser(self, request: pb.GetUserRequest, context: Context) -> pb.GetUserResponse:
        user_id = UUID(parse_uuid("user_id", request.user_id))
        account = await self._users.get(principal(), user_id)
        return convert.get_response(account, self._role_of(account))

    async def FindUser(self, request: pb.FindUserRequest, context: Context) -> pb.FindUserResponse:
        account = await self._users.find(principal(), request.email)
        return convert.find_response(account, self._role_of(account))
