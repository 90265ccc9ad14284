"""Users of a Supabase project: its tokens open every service, and what they delete here stays deleted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from deploy.parts import running
from tests.conftest import Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import PASSWORD, Phone, device_session, puzzle_session
from tests.garmin.linked import Linked, add_runs
from tests.garmin.standin import standing_in
from tests.issuers import Issuer, Key, issuer, signed_with_secret
from tests.polling import until

SECRET = "the project's own secret, of some length"  # of nobody
DOORS = ("/v1/auth/me", "/sessions", "/users/me/stats", "/api/v1/uploads/limits", "/api/v1/sync/pull")


@pytest.fixture(scope="module")
def project() -> Iterator[Issuer]:
    with issuer() as started:
        started.keys = [Key("ES256")]
        yield started


@pytest.fixture(scope="module")
def start(
    new_database: Callable[[], str], redis_url: str, project: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A mesh that takes the project's tokens; started again, it is the same one after a restart."""
    directory = tmp_path_factory.mktemp("foreign")
    config = config_for(directory / "home", database_url=new_database(), redis_url=redis_url)
    accepted = {
        "supabase_issuer": project.url,
        "supabase_jwt_secret": SECRET,
        "supabase_jwks_url": f"{project.url}/jwks",
        "supabase_tenant": "5",
        "sso_acme_issuer": project.url,
        "sso_acme_audience": "app",
    }
    return lambda: running(service_part("all", config, directory, **accepted)), lambda: envoy_for(config, directory)


@pytest.fixture
async def edge(start: Any) -> AsyncIterator[Edge]:
    services, envoy = start
    async with services(), envoy() as started:
        await until_healthy(started)
        yield started


def user(edge: Edge, project: Issuer, *, sub: str = "", secret: bool = False, **given: Any) -> Phone:
    """A phone with an access token of the project, for somebody whom nobody here has heard of."""
    claims = project.claims(
        aud="authenticated",
        sub=sub or str(uuid4()),
        email=f"{uuid4().hex}@example.com",
        role="authenticated",
        session_id=str(uuid4()),
        app_metadata={"role": "admin", "tier": "studio"},
        **given,
    )
    token = signed_with_secret({"alg": "HS256"}, claims, SECRET.encode()) if secret else project.keys[0].sign(claims)
    return Phone(edge.http, claims["sub"], claims["email"], token, "")


@pytest.mark.parametrize("secret", [True, False], ids=["by secret", "by key"])
async def test_such_a_user_is_let_in_by_every_service(edge: Edge, project: Issuer, secret: bool) -> None:
    phone = user(edge, project, secret=secret)
    for door in DOORS:
        assert (await phone.call("GET", door)).status_code == 200, door
    answer = await phone.call("POST", "/sessions/batch_upload", json={"sessions": [device_session()]})
    assert answer.json()["created"] == 1
    other = user(edge, project)
    assert (await other.call("GET", "/users/me/stats")).json()["total_sessions"] == 0
    # Whatever the project says of tiers, here it is a free one; whatever of roles, it is no administrator.
    several = {"sessions": [puzzle_session(), puzzle_session()]}
    assert len((await phone.call("POST", "/v1/sessions", json=several)).json()["rejected"]) == 1
    policy = await phone.call("PUT", "/api/v1/sync/policies/5/journal", json={"resolution_policy": "server_wins"})
    assert policy.status_code == 403


async def test_what_auth_says_of_a_user_whom_it_has_never_seen(edge: Edge, project: Issuer) -> None:
    phone = user(edge, project, is_anonymous=True)
    answers = await asyncio.gather(*(phone.call("GET", "/v1/auth/me") for _ in range(6)))
    assert {answer.status_code for answer in answers} == {200}
    me = answers[0].json()
    assert me.pop("created_at")
    assert me == {
        "id": phone.user_id,
        "email": "",
        "tier": "free",
        "subscription_status": "inactive",
        "subscription_expires_at": None,
        "email_verified": False,
        "is_guest": False,
    }
    assert (await phone.call("GET", "/v1/subscription/status")).json()["status"] == "inactive"
    assert (await phone.call("POST", "/v1/auth/signout", json={"scope": "all"})).json() == {"signed_out": 0}
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        rows = connection.execute("SELECT tenant_id, issuer FROM auth.accounts WHERE id = %s", [phone.user_id])
        assert rows.fetchall() == [(5, project.url)]


async def test_such_a_user_may_link_an_identity_and_come_in_by_it(edge: Edge, project: Issuer) -> None:
    phone = user(edge, project)
    token = project.token(sub=uuid4().hex)
    linked = await phone.call("POST", "/v1/auth/identities", json={"provider": "acme", "id_token": token})
    assert linked.status_code == 200
    signed_in = await edge.http.post("/auth/sso/acme", json={"id_token": token})
    assert signed_in.json()["user"]["id"] == phone.user_id
    # The project still lets him in.
    assert (await phone.call("DELETE", "/v1/auth/identities/acme")).json() == {"signed_out": 1}


async def test_whatever_such_a_user_asks_of_auth_is_answered(edge: Edge, project: Issuer) -> None:
    """Each asks for the first thing here, so that nothing is known of any of them."""
    guest = await Phone.as_guest(edge.http, tenant_id=5)
    named = {"name": "mine", "scopes": ["read"]}
    asked: list[tuple[int, str, str, dict[str, Any] | None]] = [
        (200, "GET", "/v1/auth/me", None),
        (200, "GET", "/v1/subscription/status", None),
        (200, "POST", "/v1/auth/signout", {}),
        (200, "GET", "/v1/auth/identities", None),
        (404, "DELETE", "/v1/auth/identities/acme", None),
        (200, "GET", "/v1/auth/devices", None),
        (404, "DELETE", f"/v1/auth/devices/{uuid4()}", None),
        (200, "GET", "/v1/auth/security-events", None),
        (403, "GET", "/v1/auth/tenant/security-events", None),
        (200, "GET", "/v1/auth/second-factor", None),
        (403, "POST", "/v1/auth/second-factor", {}),
        (404, "POST", "/v1/auth/second-factor/confirm", {"code": "123456"}),
        (404, "POST", "/v1/auth/second-factor/disable", {"code": "123456"}),
        (404, "POST", "/v1/auth/second-factor/recovery-codes", {"code": "123456"}),
        (401, "POST", "/v1/auth/password", {"current_password": "x", "new_password": "correct horse battery"}),
        (400, "POST", "/v1/auth/email/request-verification", {}),
        (401, "POST", "/v1/auth/email/change", {"new_email": "a@example.com", "password": "x"}),
        (400, "POST", "/v1/auth/email/verify", {"code": "7KQ2-M9XD"}),
        (200, "GET", "/v1/auth/export", None),
        (200, "POST", "/v1/auth/merge", {"guest_refresh_token": guest.refresh_token}),
        (200, "GET", "/users/{user_id}", None),
        (201, "POST", "/tokens/", named),
        (200, "GET", "/tokens/{user_id}", None),
        (404, "PUT", "/tokens/{user_id}", {"revoke": True}),
        (403, "GET", "/garmin_credentials/{user_id}", None),
        (201, "POST", "/v1/auth/signup", {"email": f"{uuid4().hex}@example.com", "password": PASSWORD}),
        (200, "DELETE", "/v1/auth/me", None),
    ]
    answers = []
    for _, verb, path, body in asked:
        phone = user(edge, project)
        path = path.replace("{user_id}", phone.user_id)
        answers.append(await phone.call(verb, path, **({} if body is None else {"json": body})))
    assert [(one.status_code, one.request.method, one.request.url.path) for one in answers] == [
        (status, verb, path.replace("{user_id}", one.request.url.path.rpartition("/")[2]))
        for (status, verb, path, _), one in zip(asked, answers, strict=True)
    ]


async def test_who_deletes_himself_is_erased_and_refused_for_good(edge: Edge, project: Issuer) -> None:
    phone = user(edge, project)
    answer = await phone.call("POST", "/sessions/batch_upload", json={"sessions": [device_session()]})
    assert answer.json()["created"] == 1
    deleted = await phone.call("DELETE", "/v1/auth/me")
    assert (deleted.status_code, deleted.json()["id"]) == (200, phone.user_id)

    async def refused() -> bool:
        # Also with a token that the project has issued since.
        answers = [
            await one.call("GET", door) for one in (phone, user(edge, project, sub=phone.user_id)) for door in DOORS
        ]
        return all(answer.status_code == 401 for answer in answers)

    started = time.monotonic()
    await until(refused, seconds=10)
    assert time.monotonic() - started < 5

    async def erased() -> bool:
        with psycopg.connect(edge.mesh.config.database_url) as connection:
            rows = connection.execute(
                "SELECT 1 FROM sessions.records WHERE user_id = %s AND NOT deleted", [phone.user_id]
            )
            return rows.fetchone() is None

    await until(erased)


async def test_a_restart_forgets_nobody_who_was_deleted(start: Any, project: Issuer) -> None:
    services, envoy = start
    sub = str(uuid4())
    async with services(), envoy() as edge:
        await until_healthy(edge)
        assert (await user(edge, project, sub=sub).call("DELETE", "/v1/auth/me")).status_code == 200
        with psycopg.connect(edge.mesh.config.database_url) as connection:
            # Longer ago than any token of ours lives.
            connection.execute("UPDATE auth.accounts SET delete_time = now() - interval '90 days' WHERE id = %s", [sub])
    async with services(), envoy() as edge:
        await until_healthy(edge)
        for _ in range(5):
            for door in DOORS:
                answer = await user(edge, project, sub=sub).call("GET", door)
                assert answer.status_code in (401, 503), door
        assert answer.status_code == 401
        assert (await user(edge, project).call("GET", "/sessions")).status_code == 200


async def test_such_a_user_links_an_account_at_garmin_and_what_is_there_comes(
    own_edge: Callable[..., Any], project: Issuer
) -> None:
    with standing_in() as standin:
        edge = await own_edge(
            garmin_url=standin.url, supabase_issuer=project.url, supabase_jwks_url=f"{project.url}/jwks"
        )
        phone, account = user(edge, project), standin.account()
        ada = Linked(phone, account)
        add_runs(account, 1)
        request = {"username": account.username, "password": account.password}
        answer = await phone.call("POST", "/api/garmin/login", json=request)
        assert answer.status_code == 200, answer.text
        assert (await ada.synced())["created"] == 1
        await ada.activities(1)
        assert (await phone.call("DELETE", "/v1/auth/me")).status_code == 200

        async def gone() -> bool:
            with psycopg.connect(edge.mesh.config.database_url) as connection:
                kept = "SELECT FROM {} WHERE {} = %s"
                tables = (("garmin.links", "user_id"), ("auth.garmin_credentials", "account_id"))
                return not any(connection.execute(kept.format(*one), [phone.user_id]).rowcount for one in tables)

        await until(gone)
        sign_ins = account.sign_ins
        assert (await phone.call("POST", "/api/garmin/login", json=request)).status_code == 401
        assert account.sign_ins == sign_ins
