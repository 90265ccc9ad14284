"""What acts for a user, a program or a service, is let in where the contract says so, and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from satchel.options.v1 import options_pb2 as options

from runtime.mesh import TOKEN_EXCHANGE, USER_ID_TYPE
from tests.auth.callers import as_service
from tests.conftest import Edge
from tests.journeys.test_access import LET_IN, OURS, asked, request_for

# All else in the auth service takes a sign-in. What is added here must open, change and close no way into an account.
DELEGABLE = {
    "/satchel.auth.v1.AuthService/GetMe",
    "/satchel.auth.v1.AuthService/GetSubscriptionStatus",
    "/satchel.auth.v1.UserService/GetUser",
}


@pytest.fixture(scope="module")
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(edge.target) as opened:
        yield opened


@pytest.fixture(scope="module")
async def tokens(edge: Edge) -> dict[str, str]:
    """Of an administrator, who lends neither of them the rights of one."""
    phone = await edge.administrator()
    made = await phone.call("POST", "/tokens/", json={"name": "x", "scopes": ["read", "write"]})
    request = {"grant_type": TOKEN_EXCHANGE, "subject_token": phone.user_id, "subject_token_type": USER_ID_TYPE}
    exchanged = await as_service(edge, "POST", "/v1/auth/token", json=request)
    return {"program": made.json()["token"], "service": exchanged.json()["access_token"]}


def test_the_auth_service_opens_these_and_no_others() -> None:
    guarded = {method for method, policy in OURS.items() if method.startswith("/satchel.auth.v1.")}
    assert {method for method in guarded if OURS[method].delegable} == DELEGABLE
    assert all(policy.delegable for method, policy in OURS.items() if method not in guarded)


@pytest.mark.parametrize("caller", ["program", "service"])
@pytest.mark.parametrize("method", OURS)
async def test_over_grpc(channel: grpc.aio.Channel, tokens: dict[str, str], method: str, caller: str) -> None:
    policy = OURS[method]
    metadata = (("authorization", f"Bearer {tokens[caller]}"),)
    answer, reason = await asked(channel, method, request_for(method), metadata)
    if policy.access == options.ACCESS_PUBLIC:
        assert reason != "FORBIDDEN"
    elif not policy.delegable or policy.access not in (
        *(options.ACCESS_USER, options.ACCESS_OPTIONAL, options.ACCESS_OWNER),
    ):
        assert (answer, reason) == (None, "FORBIDDEN")
    else:
        named = getattr(request_for(method), "user_id", "") or method.endswith("/AddActivity")
        assert reason == "FORBIDDEN" if named else reason in LET_IN
