"""What is done to accounts from the server's side, while services run."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from deploy.parts import ROOT
from runtime.clock import utc_now
from runtime.database import database
from runtime.errors import Failure
from services.auth.accounts import Account, Subscription
from services.auth.accounts_store import AccountStore
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.roles_domain import Roles
from services.auth.sign_ins_domain import Device, SignIn
from services.auth.sign_ins_store import SignInStore
from tests.auth.callers import as_service
from tests.conftest import Edge
from tests.factories import PASSWORD, Phone
from tests.polling import until


async def admin(edge: Edge, *words: str, stdin: str = "", **settings: str) -> tuple[int, str, str]:
    """Runs a command as an operator does; its exit status and what it prints."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "SATCHEL_HOME": str(edge.mesh.config.home),
        "SATCHEL_DATABASE_URL": edge.mesh.config.database_url,
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.auth.admin", *words),
        env=environment,
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def signed_in(edge: Edge, email: str) -> Phone:
    answer = await edge.http.post("/v1/auth/signin", json={"email": email, "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return Phone(edge.http, body["user"]["id"], email, body["access_token"], body["refresh_token"])


async def is_administrator(phone: Phone) -> bool:
    """Whether services take somebody for one."""
    policy = {"resolution_policy": "client_wins", "validate_only": True}
    return (await phone.call("PUT", "/api/v1/sync/policies/1/journal", json=policy)).status_code == 200


async def test_a_role_is_in_force_within_a_second_and_leaves_an_event(edge: Edge, phone: Phone) -> None:
    assert not await is_administrator(phone)
    code, out, _ = await admin(edge, "grant-admin", phone.email.upper())
    assert (code, out) == (0, f"{phone.email} is admin of tenant 1 now; sign-ins that were ended: 1\n")

    async def ended() -> bool:
        paths = ("/v1/auth/me", "/sessions", "/api/v1/uploads/limits")
        return [(await phone.call("GET", path)).status_code for path in paths] == [401] * 3

    assert await until(ended, seconds=5) < 1.5
    administrator = await signed_in(edge, phone.email)
    assert await is_administrator(administrator)
    assert (await administrator.call("GET", f"/users?email={phone.email}")).json()["role"] == "admin"
    code, out, _ = await admin(edge, "revoke-admin", phone.email)
    assert (code, "sign-ins that were ended: 1" in out) == (0, True)

    async def powerless() -> bool:
        return not await is_administrator(administrator)

    assert await until(powerless, seconds=5) < 1.5
    refreshed = await edge.http.post("/v1/auth/refresh", json={"refresh_token": administrator.refresh_token})
    assert refreshed.status_code == 401
    assert not await is_administrator(await signed_in(edge, phone.email))
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        query = (
            "SELECT actor, detail FROM auth.security_events WHERE account_id = %s AND kind = 'role_changed' ORDER BY id"
        )
        events = connection.execute(query, [phone.user_id]).fetchall()
    assert events == [("system", {"from": "user", "to": "admin"}), ("system", {"from": "admin", "to": "user"})]


async def test_a_role_that_is_there_already_signs_nobody_out(edge: Edge, phone: Phone) -> None:
    code, out, _ = await admin(edge, "revoke-admin", phone.email)
    assert (code, out) == (0, f"{phone.email} is user of tenant 1 already\n")
    assert (await phone.call("GET", "/v1/auth/me")).status_code == 200


async def test_no_sign_in_with_the_former_role_outlives_it(database_url: str) -> None:
    account = Account(
        id=uuid4(),
        email="ada@example.com",
        tenant_id=1,
        role="admin",
        create_time=utc_now(),
        subscription=Subscription(tier="free", status="inactive", end_time=None, cancel_at_period_end=False),
    )
    event = SecurityEvent(kind=Kind.SIGNED_IN, account_id=account.id)
    async with database(database_url, connections=2, name="test") as db:
        store = AccountStore(db)
        await store.create(account, "", None, event)
        before, after = (
            SignIn(
                id=uuid4(),
                account_id=account.id,
                device=Device(name="", ip="", user_agent=""),
                method="password",
                token_key=b"",
                current_digest=b"",
                create_time=utc_now(),
                expire_time=utc_now() + timedelta(days=1),
                role=role,
            )
            for role in ("admin", "user")
        )
        await Roles(store, now=utc_now).give(account.email, "user")
        with pytest.raises(Failure, match="INVALID_CREDENTIALS"):
            await SignInStore(db).create(before, event)
        await SignInStore(db).create(after, event)


async def test_whom_the_settings_name_stays_administrator_and_that_is_said(edge: Edge, phone: Phone) -> None:
    code, _, err = await admin(edge, "revoke-admin", phone.email, SATCHEL_ADMIN_EMAIL=phone.email)
    assert code == 1
    assert "SATCHEL_ADMIN_EMAIL names this account" in err


async def test_a_user_is_created_with_a_password_from_stdin(edge: Edge) -> None:
    email = f"{uuid4().hex}@example.com"
    words = ("create-user", email, "--tenant", "1", "--admin", "--password")
    code, out, err = await admin(edge, *words, stdin=f"{PASSWORD}\n")
    assert (code, err) == (0, "")
    assert out.endswith(f"{email} is admin of tenant 1\n")
    assert PASSWORD not in out
    assert await is_administrator(await signed_in(edge, email))
    code, out, err = await admin(edge, *words, stdin=f"{PASSWORD}\n")
    assert (code, out, err) == (1, "", "admin: This email is registered already.\n")


async def test_accounts_are_listed(edge: Edge) -> None:
    tenant = str(uuid4().int % 2**30 + 1000)
    user = await edge.phone(tenant_id=int(tenant))
    gone = await edge.phone(tenant_id=int(tenant))
    await gone.call("DELETE", "/v1/auth/me")
    code, out, _ = await admin(edge, "list", "--tenant", tenant)
    assert (code, len(out.splitlines())) == (0, 1)
    assert out.split()[0] == user.user_id
    assert out.split()[-2:] == ["user", user.email]
    code, out, err = await admin(edge, "list", "--tenant", tenant, "--admins")
    assert (code, out, err) == (0, "", "There is none.\n")
    assert user.email in (await admin(edge, "list"))[1]
    named = {"SATCHEL_ADMIN_EMAIL": user.email}
    assert (await admin(edge, "list", "--admins", **named))[1].split()[-2:] == ["admin", user.email]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("grant-admin", "nobody@example.com"), "Nobody has the address nobody@example.com."),
        (("grant-admin", "x"), "email: is not an e-mail address"),
        (("create-user", "x"), "email: is not an e-mail address"),
    ],
)
async def test_what_cannot_be_done_is_said_in_one_line(edge: Edge, words: tuple[str, ...], said: str) -> None:
    assert await admin(edge, *words) == (1, "", f"admin: {said}\n")


async def test_the_vault_gets_a_new_key_while_services_run(edge: Edge, phone: Phone) -> None:
    path = f"/garmin_credentials/{phone.user_id}"
    stored = await as_service(edge, "POST", path, json={"garmin_username": "ada", "access_token": "a"})
    assert stored.status_code == 201
    code, out, _ = await admin(edge, "rotate-vault", "--new-key")
    assert code == 0, out
    assert out.endswith("0 could not be opened\n")
    assert (await as_service(edge, "GET", path)).json() == stored.json()
    again = await admin(edge, "rotate-vault")
    assert again[1].startswith("0 rows came under key")
    changed = await as_service(edge, "PUT", path, json={"access_token": "b"})
    assert changed.json()["access_token"] == "b"
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        query = "SELECT key_id FROM auth.garmin_credentials WHERE account_id = %s"
        row = connection.execute(query, [phone.user_id]).fetchone()
    assert row is not None
    assert row[0] in again[1]
