"""Runs what is done to accounts from the server's side: `python -m services.auth.admin --help`."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from typing import cast

import psycopg
import psycopg_pool

from runtime.call import Role
from runtime.clock import format_time, utc_now
from runtime.config import Config, ConfigError, from_environment
from runtime.database import Database, database
from runtime.errors import Failure
from runtime.keys import add_vault_key, vault_keys
from runtime.migrations import migrate
from runtime.telemetry import log_to_stderr
from services.auth.accounts_store import AccountStore
from services.auth.app import vault
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.passwords import Passwords
from services.auth.rewraps_domain import rewrap_all
from services.auth.rewraps_store import SEALED, RewrapStore
from services.auth.roles_domain import BY_OPERATOR, NamedAdministrator, Roles
from services.auth.users_domain import prepared

Command = Callable[[Config, Database, argparse.Namespace], Awaitable[int]]


def main(words: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = _parser().parse_args(words)
    try:
        config = from_environment()
        log_to_stderr("admin", "warning")
        migrate(config.database_url, "auth")
        return asyncio.run(_run(config, arguments))
    except (ConfigError, Failure, psycopg.Error, psycopg_pool.PoolTimeout) as error:
        print(f"admin: {error.message if isinstance(error, Failure) else error}", file=sys.stderr)
        return 1


async def _run(config: Config, arguments: argparse.Namespace) -> int:
    async with database(config.database_url, connections=1, name="admin") as db:
        return await cast(Command, arguments.command)(config, db, arguments)


async def _create_user(config: Config, db: Database, arguments: argparse.Namespace) -> int:
    password = ""
    if arguments.password:
        # Never a word of the command, which any user of the machine can read.
        password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    role: Role = "admin" if arguments.admin else "user"
    with closing(Passwords()) as passwords:
        account, password_hash = await prepared(
            passwords, email=arguments.email, password=password, tenant_id=arguments.tenant, role=role, now=utc_now()
        )
    event = SecurityEvent(
        kind=Kind.USER_CREATED, account_id=account.id, actor=BY_OPERATOR, detail={"role": account.role}
    )
    await AccountStore(db).create(account, password_hash, None, event)
    print(f"{account.id}  {account.email} is {account.role} of tenant {account.tenant_id}")
    return 0


async def _grant_admin(config: Config, db: Database, arguments: argparse.Namespace) -> int:
    return await _give(config, db, arguments.email, "admin")


async def _revoke_admin(config: Config, db: Database, arguments: argparse.Namespace) -> int:
    return await _give(config, db, arguments.email, "user")


async def _give(config: Config, db: Database, email: str, role: Role) -> int:
    account, ended = await Roles(AccountStore(db), now=utc_now).give(email, role)
    if ended is None:
        print(f"{account.email} is {role} of tenant {account.tenant_id} already")
    else:
        print(f"{account.email} is {role} of tenant {account.tenant_id} now; sign-ins that were ended: {ended}")
    if role == "user" and account.email == config.admin_email.strip().lower():
        print("admin: SATCHEL_ADMIN_EMAIL names this account, which stays administrator for that", file=sys.stderr)
        return 1
    return 0


async def _list(config: Config, db: Database, arguments: argparse.Namespace) -> int:
    named = NamedAdministrator(email=config.admin_email, must_be_verified=config.sends_mail)
    accounts = [
        replace(one, role=named.role_of(one))
        for one in await AccountStore(db).all()
        if arguments.tenant in (0, one.tenant_id) and (named.role_of(one) == "admin" or not arguments.admins)
    ]
    for one in accounts:
        print(f"{one.id}  {format_time(one.create_time):27}  tenant {one.tenant_id:<6}  {one.role:5}  {one.email}")
    if not accounts:
        print("There is none.", file=sys.stderr)
    return 0


async def _rotate_vault(config: Config, db: Database, arguments: argparse.Namespace) -> int:
    if arguments.new_key:
        if config.vault_keys.get_secret_value():
            raise ConfigError("the vault's keys come from SATCHEL_VAULT_KEYS: put the new one first there")
        add_vault_key(config.keys, int(vault_keys(config.keys)[0].id) + 1)
    vaults = [vault(config, table) for table in SEALED]
    outcomes = [await rewrap_all(RewrapStore(db, one.table), one) for one in vaults]
    rows, unreadable = sum(one.rows for one in outcomes), sum(one.unreadable for one in outcomes)
    print(f"{rows} rows came under key {vaults[0].newest()}, {unreadable} could not be opened")
    return 1 if unreadable else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.auth.admin", description="Accounts, from the server.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Command, what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what)
        added.set_defaults(command=run)
        return added

    create = command("create-user", _create_user, "Create an account that is not signed in anywhere.")
    create.add_argument("email")
    create.add_argument("--tenant", type=_tenant, default=1, help="the tenant it belongs to (1)")
    create.add_argument("--admin", action="store_true", help="as administrator of its tenant")
    create.add_argument("--password", action="store_true", help="with a password, asked for or the first line of stdin")
    command("grant-admin", _grant_admin, "Make somebody administrator of their tenant.").add_argument("email")
    command("revoke-admin", _revoke_admin, "Make an administrator a user again.").add_argument("email")
    accounts = command("list", _list, "List accounts.")
    accounts.add_argument("--tenant", type=_tenant, default=0, help="of one tenant")
    accounts.add_argument("--admins", action="store_true", help="administrators only")
    rotate = command("rotate-vault", _rotate_vault, "Bring all that is stored sealed under the newest key.")
    rotate.add_argument("--new-key", action="store_true", help="make a new key file first")
    return parser


def _tenant(text: str) -> int:
    number = int(text)
    if not 1 <= number < 2**31:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
