"""Garmin credentials: for services only, and readable nowhere else, whatever is dumped, printed or logged."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import SecretStr

from deploy.parts import running
from runtime.config import Config
from runtime.database import database
from runtime.errors import Failure
from runtime.keys import VaultKey, add_vault_key, parse_vault_keys, vault_keys
from services.auth.app import vault as vault_of
from services.auth.garmin_credentials_domain import GarminCredentials
from services.auth.garmin_credentials_store import GarminCredentialStore
from services.auth.rewraps_domain import rewrap_all
from services.auth.rewraps_store import RewrapStore
from services.auth.vault import SealedRow, Vault, VaultError
from tests.auth.callers import as_service
from tests.conftest import Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import Phone

OWNER, OTHER = UUID(int=1), UUID(int=2)
TABLE = "garmin_credentials"


@pytest.fixture
async def phone(edge: Edge) -> Phone:
    """Of a guest, who is a user like any other here, and has no password that would have to be hashed."""
    return await Phone.as_guest(edge.http)


def credentials(**given: Any) -> dict[str, Any]:
    return {
        "garmin_username": "ada@example.com",
        "garmin_password_plaintext": "correct horse",
        "access_token": "token-1",
        "access_token_secret": "secret-1",
        "token_expiration_date": "2026-03-01T10:00:00Z",
        **given,
    }


def path_of(phone: Phone) -> str:
    return f"/garmin_credentials/{phone.user_id}"


async def linked(edge: Edge, phone: Phone, **given: Any) -> dict[str, Any]:
    answer = await as_service(edge, "POST", path_of(phone), json=credentials(**given))
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def spellings(marker: str) -> list[str]:
    """How a marker may stand in a dump or a log: as text, as bytes of PostgreSQL, in base64 at any offset."""
    coded = [base64.b64encode(bytes(offset) + marker.encode())[4:-4].decode() for offset in range(3)]
    return [marker, marker.encode().hex(), *coded]


def everything_stored(config: Config) -> str:
    """All rows of all tables, as PostgreSQL prints them."""
    with psycopg.connect(config.database_url) as connection:
        tables = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables"
            " WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        return "\n".join(
            str(row)
            for schema, table in tables
            for row in connection.execute(f'SELECT one::text FROM "{schema}"."{table}" AS one').fetchall()
        )


async def test_what_is_stored_is_given_back(edge: Edge, phone: Phone) -> None:
    created = await linked(edge, phone)
    assert created["user_id"] == phone.user_id
    assert {name: created[name] for name in credentials()} == credentials(garmin_password_plaintext="")
    answer = await as_service(edge, "GET", path_of(phone))
    assert (answer.status_code, answer.json()) == (200, created)


async def test_the_same_again_is_harmless_and_others_are_a_conflict(edge: Edge, phone: Phone) -> None:
    created = await linked(edge, phone)
    assert await linked(edge, phone) == created
    answer = await as_service(edge, "POST", path_of(phone), json=credentials(access_token="another"))
    assert (answer.status_code, answer.json()) == (409, {"detail": "The user has Garmin credentials already."})
    assert (await as_service(edge, "GET", path_of(phone))).json() == created


async def test_many_first_ones_at_once_agree_on_one(edge: Edge, phone: Phone) -> None:
    answers = await asyncio.gather(
        *(
            as_service(edge, "POST", path_of(phone), json=credentials(access_token=f"token-{number % 2}"))
            for number in range(8)
        )
    )
    stored = (await as_service(edge, "GET", path_of(phone))).json()
    for number, answer in enumerate(answers):
        won = stored["access_token"] == f"token-{number % 2}"
        assert answer.status_code == (201 if won else 409)
        assert not won or answer.json() == stored


async def test_an_update_replaces_what_it_sends_and_leaves_the_rest(edge: Edge, phone: Phone) -> None:
    created = await linked(edge, phone)
    fresh = {"access_token": "token-2", "token_expiration_date": "2026-03-02T10:00:00Z"}
    answer = await as_service(edge, "PUT", path_of(phone), json=fresh)
    assert answer.status_code == 200
    assert answer.json() == {**created, **fresh, "updated_at": answer.json()["updated_at"]}
    answer = await as_service(edge, "PUT", path_of(phone), json={"access_token_secret": ""})
    assert (answer.json()["access_token_secret"], answer.json()["access_token"]) == ("", "token-2")


async def test_updates_at_once_lose_nothing(edge: Edge, phone: Phone) -> None:
    await linked(edge, phone)
    sent = [{"access_token": "token-2"}, {"access_token_secret": "secret-2"}, {"garmin_username": "b@example.com"}] * 3
    await asyncio.gather(*(as_service(edge, "PUT", path_of(phone), json=one) for one in sent))
    stored = (await as_service(edge, "GET", path_of(phone))).json()
    assert {name: stored[name] for one in sent for name in one} == {name: one[name] for one in sent for name in one}


async def test_what_is_forgotten_is_gone(edge: Edge, phone: Phone) -> None:
    await linked(edge, phone)
    for _ in range(2):
        assert (await as_service(edge, "DELETE", path_of(phone))).status_code == 200
        assert (await as_service(edge, "GET", path_of(phone))).status_code == 404
    assert (await as_service(edge, "PUT", path_of(phone), json={"access_token": "x"})).status_code == 404
    await linked(edge, phone, access_token="another")


async def test_a_deleted_account_keeps_none_and_gets_none(edge: Edge, phone: Phone) -> None:
    await linked(edge, phone)
    assert (await phone.call("DELETE", "/v1/auth/me")).status_code == 200
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        query = "SELECT 1 FROM auth.garmin_credentials WHERE account_id = %s"
        assert connection.execute(query, [phone.user_id]).fetchone() is None
    answer = await as_service(edge, "POST", path_of(phone), json=credentials())
    assert (answer.status_code, answer.json()) == (404, {"detail": "There is no such user."})


@pytest.mark.parametrize("verb", ["POST", "PUT", "GET", "DELETE"])
async def test_it_is_for_services_only(edge: Edge, phone: Phone, verb: str) -> None:
    await linked(edge, phone)
    administrator = await edge.administrator()
    for caller in (phone, administrator):
        body = {} if verb in ("GET", "DELETE") else {"json": credentials()}
        answer = await caller.call(verb, path_of(phone), **body)
        assert answer.status_code == 403
        assert answer.json().keys() == {"detail"}
    assert (await edge.http.request(verb, path_of(phone))).status_code == 401


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        ({"garmin_username": ""}, "garmin_username: is required"),
        ({"garmin_username": " "}, "garmin_username: is required"),
        ({"garmin_username": "x" * 321}, "garmin_username: is longer than 320 characters"),
        ({"garmin_password_plaintext": "x" * 1025}, "garmin_password_plaintext: is longer than 1024 characters"),
        ({"access_token": "x" * 16_385}, "access_token: is longer than 16384 characters"),
        ({"access_token_secret": "x" * 16_385}, "access_token_secret: is longer than 16384 characters"),
        ({"token_expiration_date": "soon"}, None),
        ({"access_token": 7}, None),
    ],
)
async def test_what_cannot_be_stored_is_refused(edge: Edge, phone: Phone, given: Any, detail: str | None) -> None:
    answer = await as_service(edge, "POST", path_of(phone), json=credentials(**given))
    assert answer.status_code == 400
    assert answer.json().keys() == {"detail"}
    assert detail is None or answer.json() == {"detail": detail}
    assert (await as_service(edge, "GET", path_of(phone))).status_code == 404


async def test_a_path_that_names_nobody_is_refused(edge: Edge) -> None:
    for verb, body in (("POST", credentials()), ("PUT", credentials()), ("GET", None), ("DELETE", None)):
        answer = await as_service(edge, verb, "/garmin_credentials/me", **({"json": body} if body else {}))
        assert (answer.status_code, answer.json()) == (400, {"detail": "user_id: must be a UUID"})
        if verb != "DELETE":
            answer = await as_service(edge, verb, f"/garmin_credentials/{uuid4()}", **({"json": body} if body else {}))
            assert (answer.status_code, answer.json().keys()) == (404, {"detail"})


async def test_an_update_of_nothing_is_refused(edge: Edge, phone: Phone) -> None:
    await linked(edge, phone)
    for body in ({}, {"garmin_username": " "}):
        assert (await as_service(edge, "PUT", path_of(phone), json=body)).status_code == 400


@pytest.mark.parametrize("passwords", ["off", "on"])
async def test_no_secret_stands_in_a_row_or_a_log(
    database_url: str, redis_url: str, tmp_path: Path, passwords: str
) -> None:
    """Every service in a process of its own, its log at debug; the marker goes in by every door and every mistake."""
    marker = f"marker{uuid4().hex}"
    secrets = {name: f"{marker}-{name}" for name in credentials() if name != "token_expiration_date"}
    config = config_for(tmp_path / "home", database_url=database_url, redis_url=redis_url)
    part = service_part("all", config, tmp_path, log_level="debug", garmin_store_passwords=passwords)
    async with running(part), envoy_for(config, tmp_path / "edge") as edge:
        await until_healthy(edge)
        phone, stranger = await edge.phone(), uuid4()
        for verb in ("POST", "POST", "PUT"):
            answer = await as_service(edge, verb, path_of(phone), json=secrets)
            assert answer.status_code in (200, 201)
            assert answer.json()["garmin_password_plaintext"] == (
                secrets["garmin_password_plaintext"] if passwords == "on" else ""
            )
        conflicting = {**secrets, "access_token": f"{marker}-other"}
        assert (await as_service(edge, "POST", path_of(phone), json=conflicting)).status_code == 409
        for path, sent in (
            (f"/garmin_credentials/{stranger}", secrets),
            (path_of(phone), {**secrets, "access_token": marker * 1000}),
            (path_of(phone), {**secrets, "token_expiration_date": "9" * 30}),
        ):
            answer = await as_service(edge, "PUT", path, json=sent)
            assert answer.status_code in (400, 404)
            assert marker not in answer.text
        refused = await phone.call("PUT", path_of(phone), json=secrets)
        assert marker not in refused.text
        # A row that was tampered with fails inside: that is logged with all there is to say.
        with psycopg.connect(database_url) as connection:
            connection.execute("UPDATE auth.garmin_credentials SET access_token = garmin_username")
        for verb, body in (("GET", {}), ("PUT", {"json": secrets})):
            answer = await as_service(edge, verb, path_of(phone), **body)
            assert (answer.status_code, answer.json().keys()) == (500, {"detail"})
            assert marker not in answer.text
        stored, logs = everything_stored(config), part.log.read_text() + edge.log.read_text()
    assert phone.user_id in stored
    assert phone.user_id in logs
    for spelling in spellings(marker):
        assert spelling not in stored
        assert spelling not in logs
    held = next(line for line in logs.splitlines() if "garmin_linked" in line)
    assert json.loads(held)["actor"] == "service:garmin"


def test_no_secret_is_printed_with_what_holds_it() -> None:
    keys = [VaultKey("1", b"k" * 32)]
    held = GarminCredentials(
        account_id=OWNER,
        texts={"access_token": "marker"},
        expire_time=None,
        create_time=None,  # type: ignore[arg-type]  # not looked at
        update_time=None,  # type: ignore[arg-type]
    )
    config = Config(database_url="x", vault_keys=SecretStr(f"1:{base64.b64encode(b'k' * 32).decode()}"))
    for shown in (repr(keys), repr(held), repr(config), str(config)):
        for secret in ("kkkk", "marker", base64.b64encode(b"kkkkkk").decode()):
            assert secret not in shown


class TestVault:
    def vault(self, *ids: str) -> Vault:
        keys = [VaultKey(one, one.encode() * 32) for one in ids]
        return Vault("table", lambda: keys)

    def test_what_is_sealed_opens(self) -> None:
        texts = {"a": "text", "b": "", "c": "ü\0"}
        assert self.vault("1").open(OWNER, self.vault("1").seal(OWNER, texts)) == texts

    def test_nothing_opens_in_another_place(self) -> None:
        vault = self.vault("1")
        row = vault.seal(OWNER, {"a": "text", "b": "text"})
        misplaced = [
            (vault, OTHER, row),
            (Vault("other", lambda: [VaultKey("1", b"1" * 32)]), OWNER, row),
            (vault, OWNER, self.changed(row, {"a": row.columns["b"], "b": row.columns["a"]})),
            (vault, OWNER, self.changed(row, {"c": row.columns["a"]})),
            (vault, OWNER, self.changed(row, {"a": row.sealed_key})),
            (vault, OWNER, self.changed(row, {"a": row.columns["a"][:-1] + b"x"})),
            (vault, OWNER, self.changed(row, {"a": b""})),
            (Vault("table", lambda: [VaultKey("1", b"2" * 32)]), OWNER, row),
        ]
        for other, owner, moved in misplaced:
            with pytest.raises(VaultError):
                other.open(owner, moved)

    def changed(self, row: SealedRow, columns: dict[str, bytes]) -> SealedRow:
        return SealedRow(key_id=row.key_id, sealed_key=row.sealed_key, columns=columns)

    def test_the_same_text_never_looks_the_same(self) -> None:
        vault = self.vault("1")
        rows = [vault.seal(OWNER, {"a": "text", "b": "text"}) for _ in range(2)]
        assert len({*(row.sealed_key for row in rows), *(row.columns[name] for row in rows for name in "ab")}) == 6

    def test_a_rewrapped_row_opens_with_the_new_key_alone(self) -> None:
        old = self.vault("1").seal(OWNER, {"a": "text"})
        new = self.vault("2", "1").rewrap(OWNER, old)
        assert (new.key_id, new.columns) == ("2", old.columns)
        assert self.vault("2").open(OWNER, new) == {"a": "text"}
        with pytest.raises(Failure, match="UNAVAILABLE"):
            self.vault("1").open(OWNER, new)


class TestKeys:
    @pytest.mark.parametrize("text", ["x", "1:", ":eHg=", "1:eHg=", "1:!", "a b:" + "A" * 43 + "=", ","])
    def test_what_is_no_key_is_refused_without_being_shown(self, text: str) -> None:
        with pytest.raises(ValueError, match="id, a colon and 32 bytes"):
            parse_vault_keys(text)

    def test_keys_of_the_environment_come_newest_first(self) -> None:
        text = ", ".join(f"{id}:{base64.b64encode(id.encode() * 16).decode()}" for id in ("b2", "a1"))
        assert [key.id for key in parse_vault_keys(text)] == ["b2", "a1"]
        with pytest.raises(ValueError, match="same id"):
            parse_vault_keys(f"{text},{text}")

    def test_a_key_file_is_made_once_and_the_newest_comes_first(self, tmp_path: Path) -> None:
        assert vault_keys(tmp_path) == vault_keys(tmp_path)
        add_vault_key(tmp_path, 2)
        add_vault_key(tmp_path, 2)
        assert [key.id for key in vault_keys(tmp_path)] == ["0002", "0001"]
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


class TestRotation:
    async def test_every_row_comes_under_the_newest_key_while_services_write(
        self, own_edge: Callable[..., Awaitable[Edge]]
    ) -> None:
        edge = await own_edge()
        config = edge.mesh.config
        phones = await asyncio.gather(*(edge.phone() for _ in range(4)))
        for phone in phones:
            await linked(edge, phone)
        add_vault_key(config.keys, 2)
        writing = True

        async def write(phone: Phone) -> int:
            number = 0
            while writing or number < 3:
                number += 1
                answer = await as_service(edge, "PUT", path_of(phone), json={"access_token": f"new-{number}"})
                assert answer.status_code == 200, answer.text
                stored = (await as_service(edge, "GET", path_of(phone))).json()
                assert (stored["access_token"], stored["access_token_secret"]) == (f"new-{number}", "secret-1")
            return number

        writers = [asyncio.create_task(write(phone)) for phone in phones[:2]]
        async with database(config.database_url, connections=2, name="test") as db:
            store, vault = RewrapStore(db, TABLE), vault_of(config, TABLE)
            outcomes = await asyncio.gather(rewrap_all(store, vault), rewrap_all(store, vault))
            writing = False
            await asyncio.gather(*writers)
            assert {one.unreadable for one in outcomes} == {0}
            assert sum(one.rows for one in outcomes) >= 2
            assert (await rewrap_all(store, vault)).rows == 0
            assert not await store.under_other_keys("0002", UUID(int=0), 10)
        (config.keys / "vault-0001.key").unlink()
        for phone in phones:
            stored = (await as_service(edge, "GET", path_of(phone))).json()
            assert stored["access_token_secret"] == "secret-1"

    async def test_a_row_that_no_key_opens_stops_nobody_elses(self, own_edge: Callable[..., Awaitable[Edge]]) -> None:
        edge = await own_edge()
        config = edge.mesh.config
        phones = [await edge.phone() for _ in range(3)]
        for phone in phones:
            await linked(edge, phone)
        with psycopg.connect(config.database_url) as connection:
            query = "UPDATE auth.garmin_credentials SET key_id = 'lost' WHERE account_id = %s"
            connection.execute(query, [phones[0].user_id])
        add_vault_key(config.keys, 2)
        async with database(config.database_url, connections=2, name="test") as db:
            outcome = await rewrap_all(RewrapStore(db, TABLE), vault_of(config, TABLE))
        assert (outcome.rows, outcome.unreadable) == (2, 1)

    async def test_a_write_under_a_rewrap_is_not_undone(self, own_edge: Callable[..., Awaitable[Edge]]) -> None:
        edge = await own_edge()
        config = edge.mesh.config
        phone = await edge.phone()
        await linked(edge, phone)
        async with database(config.database_url, connections=2, name="test") as db:
            store, vault = RewrapStore(db, TABLE), vault_of(config, TABLE)
            before = await GarminCredentialStore(db).get(UUID(phone.user_id))
            assert before is not None
            await as_service(edge, "PUT", path_of(phone), json={"access_token": "new"})
            add_vault_key(config.keys, 2)
            late = vault.rewrap(before.account_id, before.row)
            assert await store.rewrap(before.account_id, before.row.sealed_key, late) == 0
        assert (await as_service(edge, "GET", path_of(phone))).json()["access_token"] == "new"
