"""What a published sync service calls of its central database, walked as the Garmin connector does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import pytest
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.struct_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from satchel.auth.v1 import application_tokens_pb2 as tokens_pb
from satchel.auth.v1 import application_tokens_pb2_grpc as tokens_grpc
from satchel.auth.v1 import garmin_credentials_pb2 as credentials_pb
from satchel.auth.v1 import garmin_credentials_pb2_grpc as credentials_grpc
from satchel.auth.v1 import users_pb2 as users_pb
from satchel.auth.v1 import users_pb2_grpc as users_grpc
from satchel.sessions.v1 import health_metrics_pb2 as metrics_pb
from satchel.sessions.v1 import health_metrics_pb2_grpc as metrics_grpc
from satchel.sessions.v1 import workout_plans_pb2 as plans_pb
from satchel.sessions.v1 import workout_plans_pb2_grpc as plans_grpc
from satchel.uploads.v1 import uploads_pb2 as uploads_pb
from satchel.uploads.v1 import uploads_pb2_grpc as uploads_grpc

from runtime.errors import Failure, Reason
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from runtime.mesh import Acting
from tests.auth.callers import as_service, service_headers
from tests.conftest import Edge
from tests.factories import PASSWORD, Phone
from tests.uploads.recordings import sample

METRIC = {"type": "steps", "value": 9000, "unit": "count", "timestamp": "2026-02-26T10:00:00Z", "source": "garmin"}
PLAN = {"name": "4 x 4", "sport": "running", "steps": [{"type": "interval", "duration_seconds": 240}]}
CREDENTIALS = {
    "garmin_username": "ada@example.com",
    "access_token": "token-1",
    "access_token_secret": "secret-1",
    "token_expiration_date": "2026-03-01T10:00:00Z",
}
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="run.fit"\r\n\r\n'
    + sample("garmin-fenix-5-run.fit")
    + b"\r\n--b--\r\n"
)


@pytest.fixture
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    """To all services, through the edge."""
    async with grpc.aio.insecure_channel(edge.target) as opened:
        yield opened


@pytest.fixture
async def acting(edge: Edge) -> AsyncIterator[Acting]:
    """How the connector acts for a user."""
    async with grpc.aio.insecure_channel(edge.mesh.address("auth")) as opened:
        yield Acting(opened, ServiceTokens(mesh_secret(edge.mesh.config.keys), "garmin"))


async def signed_in(edge: Edge, email: str) -> Phone:
    """The user's own phone, which looks at what has become of it all."""
    body = (await edge.http.post("/v1/auth/signin", json={"email": email, "password": PASSWORD})).json()
    return Phone(edge.http, body["user"]["id"], email, body["access_token"], body["refresh_token"])


async def test_the_whole_list_by_rest(edge: Edge, acting: Acting) -> None:
    email = f"{uuid4().hex}@example.com"
    created = await as_service(edge, "POST", "/users", json={"email": email, "password": PASSWORD})
    assert created.status_code == 201
    user_id = created.json()["id"]
    for found in (
        await as_service(edge, "GET", f"/users/{user_id}"),
        await as_service(edge, "GET", "/users", params={"email": email}),
    ):
        assert (found.status_code, found.json()["id"], found.json()["email"]) == (200, user_id, email)

    path = f"/garmin_credentials/{user_id}"
    assert (await as_service(edge, "POST", path, json=CREDENTIALS)).status_code == 201
    refreshed = await as_service(edge, "PUT", path, json={**CREDENTIALS, "access_token": "token-2"})
    assert refreshed.status_code == 200
    assert (await as_service(edge, "GET", path)).json()["access_token"] == "token-2"

    token = {"user_id": user_id, "name": "sync", "scopes": ["read"]}
    made = await as_service(edge, "POST", "/tokens/", json=token)
    assert made.status_code == 201
    assert (await as_service(edge, "PUT", f"/tokens/{user_id}", json={"name": "other"})).status_code == 200
    listed = (await as_service(edge, "GET", f"/tokens/{user_id}")).json()["tokens"]
    assert [(one["id"], one["name"]) for one in listed] == [(made.json()["id"], "other")]

    phone = await signed_in(edge, email)
    plan = (await phone.call("POST", "/workout_plans", json=PLAN)).json()
    headers = dict(await acting.acting_for(UUID(user_id)))

    async def for_the_user(verb: str, path: str, **request: Any) -> httpx.Response:
        return await edge.http.request(verb, path, headers=headers, timeout=60, **request)

    recording = {"file": ("run.fit", sample("garmin-fenix-5-run.fit"), "application/octet-stream")}
    added = await for_the_user("POST", f"/activities/{user_id}", files=recording)
    assert (added.status_code, added.json()["status"]) == (201, "created")
    assert (await for_the_user("POST", "/health_metrics", json=METRIC)).status_code == 201
    asked = await for_the_user("GET", f"/workout_plans/{plan['id']}")
    assert (asked.status_code, asked.json()["name"]) == (200, "4 x 4")

    assert [one["id"] for one in (await phone.call("GET", "/api/v1/files")).json()["files"]] == [
        added.json()["activity_id"]
    ]
    metrics = (await phone.call("GET", "/health_metrics")).json()["health_metrics"]
    assert [one["source"] for one in metrics] == ["garmin"]


async def test_the_whole_list_by_grpc(edge: Edge, acting: Acting, channel: grpc.aio.Channel) -> None:
    (authorization,) = service_headers(edge).values()
    service = (("authorization", authorization),)
    users = users_grpc.UserServiceStub(channel)
    email = f"{uuid4().hex}@example.com"
    created = await users.CreateUser(users_pb.CreateUserRequest(email=email, password=PASSWORD), metadata=service)
    assert (await users.GetUser(users_pb.GetUserRequest(user_id=created.id), metadata=service)).email == email
    assert (await users.FindUser(users_pb.FindUserRequest(email=email), metadata=service)).id == created.id

    credentials = credentials_grpc.GarminCredentialServiceStub(channel)
    expires = Timestamp()
    expires.FromJsonString(CREDENTIALS["token_expiration_date"])
    known = {**CREDENTIALS, "user_id": created.id, "token_expiration_date": expires}
    await credentials.CreateGarminCredentials(credentials_pb.CreateGarminCredentialsRequest(**known), metadata=service)
    await credentials.UpdateGarminCredentials(
        credentials_pb.UpdateGarminCredentialsRequest(**{**known, "access_token": "token-2"}), metadata=service
    )
    asked = credentials_pb.GetGarminCredentialsRequest(user_id=created.id)
    assert (await credentials.GetGarminCredentials(asked, metadata=service)).access_token == "token-2"

    tokens = tokens_grpc.ApplicationTokenServiceStub(channel)
    wanted = tokens_pb.CreateApplicationTokenRequest(user_id=created.id, name="sync", scopes=["read"])
    made = await tokens.CreateApplicationToken(wanted, metadata=service)
    renamed = tokens_pb.UpdateApplicationTokenRequest(user_id=created.id, name="other")
    await tokens.UpdateApplicationToken(renamed, metadata=service)
    listed = await tokens.ListApplicationTokens(
        tokens_pb.ListApplicationTokensRequest(user_id=created.id), metadata=service
    )
    assert [(one.id, one.name) for one in listed.tokens] == [(made.id, "other")]

    phone = await signed_in(edge, email)
    plan = (await phone.call("POST", "/workout_plans", json=PLAN)).json()
    user = await acting.acting_for(UUID(created.id))
    form = uploads_pb.AddActivityRequest(
        user_id=created.id, form=HttpBody(content_type="multipart/form-data; boundary=b", data=FORM)
    )
    added = await uploads_grpc.UploadServiceStub(channel).AddActivity(iter([form]), metadata=user)
    assert b'"status":"created"' in added.data
    metric = metrics_pb.CreateHealthMetricsRequest()
    metric.health_metrics.add(type="steps", value=Value(number_value=9000), source="garmin")
    stored = await metrics_grpc.HealthMetricServiceStub(channel).CreateHealthMetrics(metric, metadata=user)
    assert len(stored.results) == 1
    plans = plans_grpc.WorkoutPlanServiceStub(channel)
    asked_plan = plans_pb.GetWorkoutPlanRequest(workout_id=plan["id"])
    assert (await plans.GetWorkoutPlan(asked_plan, metadata=user)).name == "4 x 4"
    assert len((await phone.call("GET", "/api/v1/files")).json()["files"]) == 1


async def test_a_service_touches_what_is_a_users_only_in_the_users_name(edge: Edge, phone: Phone) -> None:
    plan = (await phone.call("POST", "/workout_plans", json=PLAN)).json()
    recording = {"file": ("run.fit", sample("garmin-fenix-5-run.fit"), "application/octet-stream")}
    for verb, path, request in (
        ("POST", f"/activities/{phone.user_id}", {"files": recording}),
        ("POST", "/health_metrics", {"json": METRIC}),
        ("GET", f"/workout_plans/{plan['id']}", {}),
    ):
        assert (await as_service(edge, verb, path, **request)).status_code == 403


async def test_who_acts_for_one_user_reaches_nothing_of_another(edge: Edge, phone: Phone, acting: Acting) -> None:
    other = await edge.phone()
    plan = (await other.call("POST", "/workout_plans", json=PLAN)).json()
    headers = dict(await acting.acting_for(UUID(phone.user_id)))
    recording = {"file": ("run.fit", sample("garmin-fenix-5-run.fit"), "application/octet-stream")}
    added = await edge.http.post(f"/activities/{other.user_id}", headers=headers, files=recording)
    assert added.status_code == 403
    assert (await edge.http.get(f"/workout_plans/{plan['id']}", headers=headers)).status_code in (403, 404)
    for path in (f"/garmin_credentials/{phone.user_id}", f"/users?email={phone.email}", f"/tokens/{phone.user_id}"):
        assert (await edge.http.get(path, headers=headers)).status_code == 403


async def test_nobody_acts_for_a_user_who_is_not_there(acting: Acting) -> None:
    with pytest.raises(Failure) as caught:
        await acting.acting_for(uuid4())
    assert caught.value.reason is Reason.NOT_FOUND
