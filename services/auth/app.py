"""Owns how the auth service is put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import grpc
from satchel.auth.v1 import (
    application_tokens_pb2_grpc,
    auth_pb2_grpc,
    garmin_credentials_pb2_grpc,
    token_exchange_pb2_grpc,
    users_pb2_grpc,
)

from runtime.clock import utc_now
from runtime.config import Config
from runtime.database import Database, database
from runtime.identity import Revocations, ServiceTokens, Verifier
from runtime.keys import mesh_secret, parse_vault_keys, signing_keys, vault_keys
from runtime.mesh import SessionsClient, UploadsClient, channel
from services.auth.accounts_domain import Accounts, KnownAccounts
from services.auth.accounts_servicer import AuthServicer
from services.auth.accounts_store import AccountStore
from services.auth.application_tokens_domain import ApplicationTokens
from services.auth.application_tokens_servicer import ApplicationTokenServicer
from services.auth.application_tokens_store import ApplicationTokenStore
from services.auth.erasures_domain import Erasures
from services.auth.erasures_store import ErasureStore
from services.auth.events_store import EventStore
from services.auth.garmin_credentials_domain import GarminCredentialVault
from services.auth.garmin_credentials_servicer import GarminCredentialServicer
from services.auth.garmin_credentials_store import GarminCredentialStore
from services.auth.passwords import Passwords, commonest
from services.auth.sign_ins_domain import SignIns
from services.auth.sign_ins_store import SignInStore
from services.auth.token_exchange_domain import TokenExchange
from services.auth.token_exchange_servicer import TokenExchangeServicer
from services.auth.tokens import AccessTokens
from services.auth.users_domain import Users
from services.auth.users_servicer import UserServicer
from services.auth.vault import Vault


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds the auth service to `server` for as long as the block runs."""
    async with database(config.database_url, connections=config.database_connections, name="auth") as db:
        await asyncio.to_thread(commonest)  # before the first sign-up, which would hold up everybody else's calls
        tokens = ServiceTokens(mesh_secret(config.keys), "auth")
        async with channel(config.sessions_address) as sessions, channel(config.uploads_address) as uploads:
            # Files first: whatever they still have to tell of themselves finds its user's records ended.
            elsewhere = [UploadsClient(uploads, tokens).erase_user, SessionsClient(sessions, tokens).erase_user]
            erasures = Erasures(ErasureStore(db), elsewhere, now=utc_now)
            with closing(Passwords()) as passwords:
                access_tokens = AccessTokens(signing_keys(config.keys))
                store, events = AccountStore(db), EventStore(db)
                known = KnownAccounts(store, now=utc_now)
                sign_ins = SignIns(
                    SignInStore(db),
                    events,
                    access_tokens,
                    account=known.account,
                    admin_email=config.admin_email,
                    now=utc_now,
                )
                accounts = Accounts(store, events, passwords, sign_ins, deleted=erasures.look, now=utc_now)
                servicer = AuthServicer(accounts, known, sign_ins, access_tokens)
                auth_pb2_grpc.add_AuthServiceServicer_to_server(servicer, server)
                users = Users(store, passwords, now=utc_now)
                applications = ApplicationTokens(ApplicationTokenStore(db), users, now=utc_now)
                users_pb2_grpc.add_UserServiceServicer_to_server(UserServicer(users), server)
                application_tokens_pb2_grpc.add_ApplicationTokenServiceServicer_to_server(
                    ApplicationTokenServicer(applications), server
                )
                garmin_credentials_pb2_grpc.add_GarminCredentialServiceServicer_to_server(
                    GarminCredentialServicer(_garmin_credentials(config, db)), server
                )
                token_exchange_pb2_grpc.add_TokenExchangeServiceServicer_to_server(
                    TokenExchangeServicer(_token_exchange(config, db, access_tokens, applications)), server
                )
                async with erasures.running():
                    yield


def garmin_vault(config: Config) -> Vault:
    """The vault that Garmin credentials are sealed by; reads its keys anew each time when they are files."""
    if text := config.vault_keys.get_secret_value():
        given = parse_vault_keys(text)
        return Vault("garmin_credentials", lambda: given)
    return Vault("garmin_credentials", lambda: vault_keys(config.keys))


def _garmin_credentials(config: Config, db: Database) -> GarminCredentialVault:
    return GarminCredentialVault(
        GarminCredentialStore(db),
        garmin_vault(config),
        stores_passwords=config.stores_garmin_passwords,
        now=utc_now,
    )


def _token_exchange(
    config: Config, db: Database, access_tokens: AccessTokens, applications: ApplicationTokens
) -> TokenExchange:
    async def keys() -> list[dict[str, str]]:
        return access_tokens.public_keys()

    verifier = Verifier(
        fetch_keys=keys,
        mesh_secret=mesh_secret(config.keys),
        revocations=Revocations(),  # what was ended is asked of the database
        resolve=applications.resolve_one,
    )
    return TokenExchange(AccountStore(db), SignInStore(db), EventStore(db), access_tokens, verifier, now=utc_now)
