"""Whose things an rpc touches: every rpc with what is somebody else's, and with every token that is less than a user's.

Beside test_access, which asks who may call what, and test_delegation, which asks what programs may: here each rpc that
names a thing is called by everybody whose it is not, and then by its owner, who still finds it as it was.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import grpc
import jwt
import psycopg
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from satchel.options.v1 import options_pb2 as options

from runtime.application_tokens import new_token
from runtime.call import Principal
from runtime.contract import HttpRule, Policy
from runtime.keys import signing_keys
from runtime.mesh import TOKEN_EXCHANGE, USER_ID_TYPE
from services.auth.tokens import AccessTokens
from tests.auth.callers import as_service, bearer, service_headers
from tests.conftest import Edge
from tests.factories import Phone, change, exercise_session, filled, puzzle_session
from tests.health.reports import message as message_of
from tests.health.reports import reporting
from tests.journeys.test_access import CODES, DESCRIPTORS, LET_IN, OURS, asked, request_for
from tests.polling import until

MARK = "nobody else reads this"
SELF, FRESH = "<the caller's own id>", "<an address that nobody has>"
CONTENT = MARK.encode()

Request = dict[str, Any]


@dataclass(frozen=True)
class World:
    """Somebody with things, and everybody else."""

    edge: Edge
    tenant: int
    owner: Phone
    tokens: Mapping[str, str]
    """By who calls."""
    ids: Mapping[str, str]
    """Of those who call in their own name."""
    marks: tuple[str, ...]
    """What tells anything of the owner's things."""

    async def called(self, verb: str, path: str, **request: Any) -> dict[str, Any]:
        answer = await self.owner.call(verb, path, **request)
        assert answer.is_success, answer.text
        body: dict[str, Any] = answer.json()
        return body


OUTSIDERS = (
    *("neighbour", "boss", "stranger", "other boss", "guest"),
    *("neighbour's program", "service for the neighbour", "service for the boss"),
)
OWNERS_OWN = ("owner's program", "owner's reader", "service for the owner")


@pytest.fixture(scope="module")
async def world(edge: Edge) -> World:
    tenant = 10_000_000 + uuid4().int % 1_000_000
    owner, neighbour, boss = [await one(tenant_id=tenant) for one in (edge.phone, edge.phone, edge.administrator)]
    stranger, other_boss = [await one(tenant_id=tenant + 1) for one in (edge.phone, edge.administrator)]
    guest = await Phone.as_guest(edge.http, tenant_id=tenant)
    phones = {
        "owner": owner,
        "neighbour": neighbour,
        "boss": boss,
        "stranger": stranger,
        "other boss": other_boss,
        "guest": guest,
    }
    tokens = {
        **{name: phone.access_token for name, phone in phones.items()},
        "service": service_headers(edge)["authorization"].removeprefix("Bearer "),
        "neighbour's program": await program(neighbour, "write"),
        "owner's program": await program(owner, "write"),
        "owner's reader": await program(owner, "read"),
        "service for the owner": await acting(edge, owner),
        "service for the neighbour": await acting(edge, neighbour),
        "service for the boss": await acting(edge, boss),
    }
    marks = (MARK, owner.user_id, owner.email)
    return World(edge, tenant, owner, tokens, {name: phone.user_id for name, phone in phones.items()}, marks)


async def program(phone: Phone, scope: str) -> str:
    answer = await phone.call("POST", "/tokens/", json={"name": MARK, "scopes": [scope]})
    return str(answer.json()["token"])


async def acting(edge: Edge, phone: Phone) -> str:
    request = {"grant_type": TOKEN_EXCHANGE, "subject_token": phone.user_id, "subject_token_type": USER_ID_TYPE}
    return str((await as_service(edge, "POST", "/v1/auth/token", json=request)).json()["access_token"])


@pytest.fixture(scope="module")
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(edge.target) as opened:
        yield opened


async def a_session(world: World) -> Request:
    return {"id": (await world.called("POST", "/sessions", json=exercise_session()))["id"]}


async def a_plan(world: World) -> Request:
    plan = {"name": MARK, "steps": [{"type": "interval"}]}
    return {"workout_id": (await world.called("POST", "/workout_plans", json=plan))["id"]}


async def a_conflict(world: World) -> Request:
    """An open one: nobody decides it but its owner."""
    path = f"/api/v1/sync/policies/{world.tenant}/journal"
    by_hand = await world.edge.http.put(
        path, json={"resolution_policy": "manual"}, headers=bearer(world.tokens["boss"])
    )
    assert by_hand.status_code == 200, by_hand.text
    page = change(data={"text": MARK})
    await world.called("POST", "/api/v1/sync/push", json={"changes": [page]})
    other = {**page, "data": {"text": f"{MARK}, again"}}
    (receipt,) = (await world.called("POST", "/api/v1/sync/push", json={"changes": [other]}))["receipts"]
    return {"conflict_id": receipt["conflict"]["conflict_id"], "resolution": "accept_server"}


async def an_open_conflict(world: World) -> Request:
    return {"conflict_id": (await a_conflict(world))["conflict_id"]}


async def an_upload(world: World, content: bytes = CONTENT) -> Request:
    asked_for = {
        "filename": f"{MARK}.txt",
        "total_size": len(content),
        "mime_type": "text/plain",
        "file_hash": hashlib.sha256(content).hexdigest(),
    }
    return {"upload_id": (await world.called("POST", "/api/v1/uploads/init", json=asked_for))["upload_id"]}


async def a_whole_upload(world: World) -> Request:
    content = f"{MARK} {uuid4()}".encode()
    request = await an_upload(world, content)
    await world.called("PUT", f"/api/v1/uploads/{request['upload_id']}/content", content=content)
    return request


async def a_file(world: World) -> Request:
    request = await a_whole_upload(world)
    await world.called("POST", f"/api/v1/uploads/{request['upload_id']}/finalize")
    return {"file_id": request["upload_id"]}


async def a_file_by_name(world: World) -> Request:
    return {"name": f"{(await a_file(world))['file_id']}.txt"}


async def a_device(world: World) -> Request:
    """Of the sign-in that the owner calls with, which nobody ends."""
    return {"id": jwt.decode(world.owner.access_token, options={"verify_signature": False})["sid"]}


async def a_token(world: World) -> Request:
    made = await world.called("POST", "/tokens/", json={"name": MARK, "scopes": ["read"]})
    return {"user_id": world.owner.user_id, "id": made["id"], "name": "renamed"}


async def a_token_under_ones_own_name(world: World) -> Request:
    return {**await a_token(world), "user_id": SELF}


async def the_owner(world: World) -> Request:
    return {"user_id": world.owner.user_id}


async def a_token_to_be(world: World) -> Request:
    return {"user_id": world.owner.user_id, "name": MARK, "scopes": ["read"]}


async def the_owners_address(world: World) -> Request:
    return {"email": world.owner.email}


async def a_user_to_be(world: World) -> Request:
    return {"email": FRESH, "tenant_id": world.tenant}


async def a_policy(world: World) -> Request:
    return {"tenant_id": world.tenant, "domain": "journal"}


async def a_dry_run(world: World) -> Request:
    return {**await a_policy(world), "resolution_policy": "client_wins", "validate_only": True}


async def a_log(world: World) -> Request:
    await a_conflict(world)
    return {"tenant_id": world.tenant}


async def a_tenant(world: World) -> Request:
    return {"tenant_id": world.tenant}


async def a_known_device(world: World) -> Request:
    """One whose id says whose it is."""
    device_id = f"phone-of-{world.owner.user_id}"
    async with reporting(world.edge) as reporter:
        await reporter.report(message_of(world.tenant, world.owner.user_id, device_id))
    return {"device_id": device_id}


async def a_course(world: World) -> Request:
    return {**await a_known_device(world), "tenant_id": world.tenant, "user_id": world.owner.user_id}


def refused(reason: str, *, reader: str = "FORBIDDEN") -> dict[str, str]:
    """The answers of an rpc that is open to the owner and whoever acts for the owner, and to others is `reason`."""
    others = dict.fromkeys(OUTSIDERS, reason)
    return others | dict.fromkeys(OWNERS_OWN, "") | {"owner's reader": reader, "owner": "", "service": "FORBIDDEN"}


F, N, U = "FORBIDDEN", "NOT_FOUND", "UPLOAD_FORBIDDEN"
# What a sign-in is needed for is closed to whoever calls in somebody's name.
BY_PROGRAMS = dict.fromkeys(
    ("neighbour's program", "service for the neighbour", "service for the boss", *OWNERS_OWN), F
)
READ = refused(F, reader="")
CHANGED = refused(F)
UPLOADED = refused(U)
OF_THE_TENANT = READ | dict.fromkeys(OUTSIDERS, "") | {"stranger": F, "other boss": F}
OF_ADMINISTRATORS = CHANGED | BY_PROGRAMS | {"boss": "", "owner": F}
ADMINISTERED = CHANGED | {"boss": "", "service": ""} | BY_PROGRAMS


@dataclass(frozen=True)
class Row:
    """An rpc with a thing of the owner's."""

    method: str
    make: Callable[[World], Awaitable[Request]]
    answers: Mapping[str, str]
    """The reason of the refusal by who calls; empty: let in; SELF: not asked. Others come first, the owner last."""
    tells: tuple[str, ...] = ()
    """Who of those that are let in may be told of the owner's things, beside the owner."""

    @property
    def policy(self) -> Policy:
        return OURS[self.method]

    def __str__(self) -> str:
        return f"{self.method.rpartition('/')[2]} of {self.make.__name__}"


def rows() -> list[Row]:
    auth, sessions, uploads = "/satchel.auth.v1.", "/satchel.sessions.v1.", "/satchel.uploads.v1.UploadService/"
    health = "/satchel.health.v1.HealthService/"
    users, programs = auth + "UserService/", auth + "ApplicationTokenService/"
    acting = ("owner", "owner's program", "service for the owner")
    empty = UPLOADED | dict.fromkeys(acting, "FIELD_MISSING")
    return [
        Row(sessions + "ExerciseSessionService/GetExerciseSession", a_session, READ),
        Row(sessions + "WorkoutPlanService/GetWorkoutPlan", a_plan, READ),
        Row(
            sessions + "SyncService/ResolveConflict",
            a_conflict,
            # The tenant's administrator has decided it, who comes first.
            refused(N)
            | dict.fromkeys(("owner's program", "service for the owner", "owner"), "SYNC_CONFLICT")
            | {"boss": ""},
        ),
        Row(
            sessions + "SyncService/GetConflict",
            an_open_conflict,
            refused(N, reader="") | {"boss": ""},
            tells=("boss",),
        ),
        Row(
            sessions + "SyncService/ListConflicts",
            a_log,
            READ | dict.fromkeys(OUTSIDERS, "") | {"stranger": F, "other boss": F},
            tells=("boss",),
        ),
        Row(
            sessions + "SyncService/GetPolicy",
            a_policy,
            READ | dict.fromkeys(OUTSIDERS, "") | {"stranger": F, "other boss": F},
        ),
        Row(
            sessions + "SyncService/UpdatePolicy",
            a_dry_run,
            CHANGED | {"boss": "", "owner": F} | BY_PROGRAMS,
        ),
        Row(uploads + "UploadChunk", an_upload, empty),
        Row(uploads + "UploadChunks", an_upload, empty),
        Row(uploads + "UploadContent", an_upload, UPLOADED),
        Row(uploads + "GetUploadStatus", an_upload, UPLOADED | {"owner's reader": ""}),
        Row(uploads + "FinalizeUpload", a_whole_upload, UPLOADED),
        Row(uploads + "CancelUpload", an_upload, UPLOADED),
        Row(uploads + "GetFile", a_file_by_name, READ),
        Row(uploads + "HeadFile", a_file_by_name, READ),
        Row(uploads + "CreateSignedUrl", a_file, CHANGED),
        Row(uploads + "DeleteFile", a_file, CHANGED),
        Row(
            uploads + "AddActivity",
            the_owner,
            CHANGED | dict.fromkeys(acting, "MALFORMED_REQUEST"),
        ),
        Row(users + "GetUser", the_owner, READ | {"boss": "", "service": ""}, tells=("boss", "service")),
        Row(
            users + "FindUser",
            the_owners_address,
            ADMINISTERED | {"other boss": N, "owner": F},
            tells=("boss", "service"),
        ),
        Row(users + "CreateUser", a_user_to_be, ADMINISTERED | {"owner": F}),
        Row(programs + "CreateApplicationToken", a_token_to_be, ADMINISTERED, tells=("boss", "service")),
        Row(programs + "UpdateApplicationToken", a_token, ADMINISTERED, tells=("boss", "service")),
        Row(
            programs + "UpdateApplicationToken",
            a_token_under_ones_own_name,
            refused(N) | BY_PROGRAMS | {"service": N},
        ),
        Row(programs + "ListApplicationTokens", the_owner, ADMINISTERED, tells=("boss", "service")),
        Row(auth + "DeviceService/DeleteDevice", a_device, refused(N) | BY_PROGRAMS | {"owner": SELF}),
        Row(health + "GetSyncHealth", a_tenant, OF_THE_TENANT),
        Row(
            health + "GetDeviceHealth",
            a_known_device,
            refused(N, reader="") | {"boss": ""},
            tells=("boss",),
        ),
        Row(health + "ListDeviceHealth", a_tenant, OF_ADMINISTRATORS, tells=("boss",)),
        Row(health + "ListSyncPoints", a_course, OF_ADMINISTRATORS, tells=("boss",)),
        Row(health + "WatchSyncHealth", a_tenant, OF_ADMINISTRATORS),
        Row(
            auth + "SecurityEventService/ListTenantSecurityEvents",
            the_owner,
            CHANGED | {"boss": "", "other boss": "", "owner": F} | BY_PROGRAMS,
            tells=("boss",),
        ),
    ]


ROWS = rows()
# Fields that name a thing, though nothing of anybody's.
NO_THINGS = {
    "domain": "a kind of records",
    "platform": "a kind of phones",
    "provider": "who signs users in",
    "chunk_index": "a part of an upload, which is named too",
    "exercise_id": "a kind of exercises",
    "request_id": "the call itself",
    "receipt_id": "a secret: test_receipts",
}
# Where what is named is the caller's own to be, or proves itself.
ANYBODYS = {
    "/satchel.auth.v1.AuthService/SignUp": "the address and the tenant that one asks for",
    "/satchel.auth.v1.AuthService/SignIn": "with a password: test_attempts",
    "/satchel.auth.v1.SsoService/SignInWithProvider": "with an id token: test_sso",
    "/satchel.auth.v1.GuestService/CreateGuest": "the tenant that one asks for",
    "/satchel.auth.v1.PasswordService/RequestPasswordReset": "tells nothing: test_passwords",
    "/satchel.auth.v1.PasswordService/ResetPassword": "with a code: test_passwords",
    "/satchel.sessions.v1.ExerciseSessionService/CreateExerciseSession": "in one's own feed: test_access",
    "/satchel.sessions.v1.WorkoutPlanService/CreateWorkoutPlan": "in one's own feed: test_access",
    "/satchel.health.v1.PageService/GetPageFile": "a file of the page, which holds nothing of anybody's: test_files",
    "/satchel.health.v1.ReferenceService/GetDocsFile": "a part of a page that is there for everybody",
}
PLACES = ("page_token", "cursor")
LISTS = [
    policy
    for method, policy in OURS.items()
    if policy.access != options.ACCESS_SERVICE
    and not set(PLACES).isdisjoint(DESCRIPTORS[method].input_type.fields_by_name.keys())
]
_NAMES = re.compile(r"(.*_)?id|email")


def names(policy: Policy) -> set[str]:
    """The fields of an rpc's request that name a thing."""
    in_paths = {name for rule in policy.http for name in re.findall(r"{(\w+)}", rule.path)}
    fields = {name for name in DESCRIPTORS[policy.method].input_type.fields_by_name if _NAMES.fullmatch(name)}
    return (in_paths | fields) - NO_THINGS.keys()


def message(method: str, content: Request) -> Message:
    request: Message = GetMessageClass(DESCRIPTORS[method].input_type)()
    return json_format.ParseDict(content, request)


def content_for(world: World, caller: str, made: Request) -> Request:
    fresh = {SELF: world.ids.get(caller, str(uuid4())), FRESH: f"{uuid4().hex}@example.com"}
    return {name: fresh.get(value, value) if isinstance(value, str) else value for name, value in made.items()}


def untold(world: World, answer: Any, content: Request) -> bool:
    """Whether an answer is silent on the owner's things, but for what the caller has said."""
    said = b"".join(one.SerializeToString() for one in (answer if isinstance(answer, list) else [answer]))
    return not any(mark.encode() in said for mark in world.marks if mark not in content.values())


def test_every_rpc_that_names_a_thing_has_a_row() -> None:
    open_to_some = {name for name, one in OURS.items() if one.access != options.ACCESS_SERVICE}
    naming = {name for name in open_to_some if names(OURS[name])}
    assert naming == {row.method for row in ROWS} | ANYBODYS.keys()
    assert not {row.method for row in ROWS} & ANYBODYS.keys()
    for row in ROWS:
        assert row.answers.keys() >= {*OUTSIDERS, "owner"}, row


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_a_thing_is_its_owners(world: World, channel: grpc.aio.Channel, row: Row) -> None:
    made = await row.make(world)
    for caller, expected in sorted(row.answers.items(), key=lambda one: one[0] in (*OWNERS_OWN, "owner")):
        if expected == SELF:
            continue
        content = content_for(world, caller, made)
        metadata = (("authorization", f"Bearer {world.tokens[caller]}"),)
        if expected and caller in OUTSIDERS:
            await refused_over_rest(world, row.policy, caller, content, expected)
        answer, reason = await asked(channel, row.method, message(row.method, content), metadata)
        assert reason == expected, caller
        if not reason and caller not in (*row.tells, "owner", *OWNERS_OWN):
            assert untold(world, answer, content), f"{caller} is told of what is another's"


async def refused_over_rest(world: World, policy: Policy, caller: str, content: Request, expected: str) -> None:
    for rule in policy.http:
        path = filled(rule.path, **{name: str(value) for name, value in content.items()})
        rest = {name: value for name, value in content.items() if f"{{{name}}}" not in rule.path}
        reads = rule.verb in ("GET", "HEAD", "DELETE")
        answer = await world.edge.http.request(
            rule.verb,
            f"{path}?{urlencode(rest)}" if reads and rest else path,
            headers=bearer(world.tokens[caller]),
            **({} if reads else {"json": rest}),
        )
        status = 404 if expected == N else 403
        assert answer.status_code == status, f"{caller}: {rule} {answer.text}"
        if rule.verb == "HEAD":
            assert answer.content == b""
        elif policy.dialect == options.DIALECT_DETAIL:
            assert answer.json().keys() == {"detail"}, caller
        else:
            code = {F: CODES.get((403, policy.dialect)), N: "NOT_FOUND", U: "UPLOAD_001"}[expected]
            assert answer.json()["error"]["code"] == code, f"{caller}: {rule}"


@pytest.mark.parametrize(
    "policy", [one for one in OURS.values() if one.access == options.ACCESS_SERVICE], ids=lambda one: one.method
)
async def test_what_services_do_to_somebody_nobody_else_does(
    world: World, channel: grpc.aio.Channel, policy: Policy
) -> None:
    fields = DESCRIPTORS[policy.method].input_type.fields_by_name
    whose = {"user_id": world.owner.user_id, "guest_id": world.owner.user_id, "tenant_id": world.tenant}
    request = message(policy.method, {name: value for name, value in whose.items() if name in fields})
    for caller, token in world.tokens.items():
        if caller != "service":
            answer = await asked(channel, policy.method, request, (("authorization", f"Bearer {token}"),))
            assert answer == (None, "FORBIDDEN"), caller


@pytest.fixture(scope="module")
async def things(world: World) -> None:
    """Two of everything that is listed."""
    for number in (1, 2):
        for make in (a_session, a_plan, a_file, a_conflict, a_known_device, a_whole_upload):
            await make(world)
        metric = {"type": "mood", "value": number, "notes": MARK}
        await world.called("POST", "/health_metrics", json={"health_metrics": [metric]})
    await world.called("POST", "/v1/sessions", json={"sessions": [puzzle_session(declutter_text=MARK)]})


@pytest.mark.parametrize("policy", LISTS, ids=lambda one: one.method.rpartition("/")[2])
async def test_a_place_in_ones_own_list_leads_nobody_else_there(
    world: World, things: None, channel: grpc.aio.Channel, policy: Policy
) -> None:
    """Everything that is listed: what the owner has is not in it, also from the place where the owner stands."""
    whose = "boss" if policy.access == options.ACCESS_ADMIN else "owner"
    by_admins = policy.access == options.ACCESS_ADMIN or policy.method.endswith("/ListConflicts")
    size = {"limit": 1} if policy.method.endswith(("/PullChanges", "/PullChangesJson")) else {"page_size": 1}
    answer, reason = await asked(
        channel, policy.method, message(policy.method, size), (("authorization", f"Bearer {world.tokens[whose]}"),)
    )
    assert not reason
    place = re.search(rb'(?:next_cursor|next_page_token)": ?"([^"]+)"', getattr(answer, "data", b""))
    token = place[1].decode() if place else getattr(answer, "next_page_token", "") or getattr(answer, "next_cursor", "")
    name = next(one for one in PLACES if one in DESCRIPTORS[policy.method].input_type.fields_by_name)
    for caller in OUTSIDERS:
        if caller == "boss" and by_admins:
            continue
        for content in ({}, {name: token} if token else {}):
            metadata = (("authorization", f"Bearer {world.tokens[caller]}"),)
            answer, reason = await asked(channel, policy.method, message(policy.method, content), metadata)
            assert reason in ("", "FORBIDDEN", "FIELD_INVALID", "RESYNC_REQUIRED"), caller
            if not reason:
                assert untold(world, answer, content), f"{caller} is told of what is another's"


# Tokens that are good for nothing, with the reason; open rpcs do not look at them.
DEAD = {
    "an ended program": "TOKEN_REVOKED",
    "an expired program": "TOKEN_EXPIRED",
    "a made-up program": "INVALID_TOKEN",
    "an ended acting token": "TOKEN_REVOKED",
    "an expired acting token": "TOKEN_EXPIRED",
    "a refresh token": "INVALID_TOKEN",
    "a token in another scheme": "MISSING_BEARER_TOKEN",
}


@pytest.fixture(scope="module")
async def dead(edge: Edge) -> dict[str, str]:
    """The headers."""
    phone, leaver = await edge.phone(), await edge.phone()
    answer = await leaver.call("POST", "/tokens/", json={"name": "x", "scopes": ["write"]})
    ended = answer.json()["token"]
    expired = await program(phone, "write")
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        connection.execute(
            "UPDATE auth.application_tokens SET expire_time = now() - interval '1 hour' WHERE account_id = %s",
            [phone.user_id],
        )
    request = {"grant_type": TOKEN_EXCHANGE, "subject_token": leaver.access_token}
    request["subject_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
    lent = (await as_service(edge, "POST", "/v1/auth/token", json=request)).json()["access_token"]
    claims = jwt.decode(phone.access_token, options={"verify_signature": False})
    principal = Principal(
        user_id=UUID(claims["sub"]),
        sign_in_id=UUID(claims["sid"]),
        tenant_id=1,
        role="user",
        tier="free",
        actor="service:garmin",
    )
    keys = signing_keys(edge.mesh.config.keys)
    old = AccessTokens(keys, clock=lambda: time.time() - 600).mint_acting(principal)
    assert (await leaver.call("PUT", f"/tokens/{leaver.user_id}", json={"revoke": True})).status_code == 200
    assert (await leaver.call("POST", "/v1/auth/signout", json={})).status_code == 200

    async def are_ended() -> bool:
        paths = ("/v1/auth/me", "/users/me/stats", "/api/v1/uploads/limits")
        answers = [await edge.http.get(path, headers=bearer(one)) for path in paths for one in (ended, lent)]
        return {answer.status_code for answer in answers} == {401}

    await until(are_ended, seconds=5)
    return {
        "an ended program": f"Bearer {ended}",
        "an expired program": f"Bearer {expired}",
        "a made-up program": f"Bearer {new_token()}",
        "an ended acting token": f"Bearer {lent}",
        "an expired acting token": f"Bearer {old}",
        "a refresh token": f"Bearer {phone.refresh_token}",
        "a token in another scheme": f"Basic {phone.access_token}",
    }


@pytest.mark.parametrize("method", OURS)
async def test_a_dead_token_opens_nothing_over_grpc(
    channel: grpc.aio.Channel, dead: dict[str, str], method: str
) -> None:
    if OURS[method].access == options.ACCESS_PUBLIC:
        return
    for name, header in dead.items():
        answer = await asked(channel, method, request_for(method), (("authorization", header),))
        assert answer == (None, DEAD[name]), name


@pytest.mark.parametrize(
    ("policy", "rule"),
    [(policy, rule) for policy in OURS.values() for rule in policy.http if policy.access != options.ACCESS_PUBLIC],
    ids=lambda value: value.path if isinstance(value, HttpRule) else value.method.rpartition("/")[2],
)
async def test_a_dead_token_opens_nothing_over_rest(
    edge: Edge, dead: dict[str, str], policy: Policy, rule: HttpRule
) -> None:
    for name, header in dead.items():
        answer = await edge.http.request(rule.verb, filled(rule.path), headers={"authorization": header})
        assert answer.status_code == 401, name
        if rule.verb == "HEAD":
            assert answer.content == b""
        elif policy.dialect == options.DIALECT_DETAIL:
            assert answer.json().keys() == {"detail"}, name
        else:
            error, code = answer.json()["error"], CODES[401, policy.dialect]
            assert error["code"] == ("AUTH_002" if (DEAD[name], code) == ("TOKEN_EXPIRED", "AUTH_001") else code), name
            assert error["details"] == [{"field": "Authorization", "reason": DEAD[name]}]


@pytest.fixture(scope="module")
async def lesser(edge: Edge) -> dict[str, str]:
    """The headers of a guest, and of a program that may read."""
    guest, phone = await Phone.as_guest(edge.http), await edge.phone()
    return {"guest": f"Bearer {guest.access_token}", "reader": f"Bearer {await program(phone, 'read')}"}


@pytest.mark.parametrize("method", OURS)
async def test_who_has_less_than_an_account_may_less(
    edge: Edge, channel: grpc.aio.Channel, lesser: dict[str, str], method: str
) -> None:
    """A guest is a user of whatever is a user's; a program that may read changes nothing."""
    policy, request = OURS[method], request_for(method)
    for_users = policy.access in (options.ACCESS_USER, options.ACCESS_OPTIONAL, options.ACCESS_OWNER)
    nobodys = bool(getattr(request, "user_id", "")) or method.endswith("/AddActivity")
    guest = lesser["guest"]
    if method.endswith(("/SignUp", "/DeleteMe")):  # after which it is none
        guest = (await Phone.as_guest(edge.http)).headers["authorization"]
    _, reason = await asked(channel, method, request, (("authorization", guest),))
    if policy.access == options.ACCESS_PUBLIC:
        assert reason != "FORBIDDEN"
    elif not for_users or nobodys:
        assert reason == "FORBIDDEN"
    else:
        assert reason in LET_IN
    answer, reason = await asked(channel, method, request_for(method), (("authorization", lesser["reader"]),))
    if policy.access == options.ACCESS_PUBLIC:
        assert reason != "FORBIDDEN"
    elif not (for_users and policy.delegable and policy.read_only) or nobodys:
        assert (answer, reason) == (None, "FORBIDDEN")
    else:
        assert reason in LET_IN
