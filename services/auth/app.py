"""Owns how the auth service is put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import grpc
from satchel.auth.v1 import auth_pb2_grpc, second_factors_pb2_grpc, subscriptions_pb2_grpc

from runtime.clock import utc_now
from runtime.config import Config
from runtime.database import database
from runtime.identity import ServiceTokens
from runtime.keys import home_key, mesh_secret, signing_keys
from runtime.mesh import SessionsClient, UploadsClient, channel
from runtime.tiers import FILE, read_tiers
from services.auth.accounts_domain import Accounts, KnownAccounts
from services.auth.accounts_servicer import AuthServicer
from services.auth.accounts_store import AccountStore
from services.auth.erasures_domain import Erasures
from services.auth.erasures_store import ErasureStore
from services.auth.events_store import EventStore
from services.auth.passwords import Passwords, commonest
from services.auth.second_factors_domain import SecondFactors
from services.auth.second_factors_sealing import Sealing
from services.auth.second_factors_servicer import SecondFactorServicer
from services.auth.second_factors_store import SecondFactorStore
from services.auth.sign_ins_domain import SignIns
from services.auth.sign_ins_store import SignInStore
from services.auth.subscriptions_domain import Subscriptions
from services.auth.subscriptions_servicer import SubscriptionServicer
from services.auth.subscriptions_store import SubscriptionStore
from services.auth.tokens import AccessTokens


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
                sealing = Sealing(home_key(config.keys, "second factors"))
                second_factors = SecondFactors(SecondFactorStore(db), events, sealing, passwords, now=utc_now)
                sign_ins = SignIns(
                    SignInStore(db),
                    events,
                    access_tokens,
                    second_factors,
                    account=known.account,
                    admin_email=config.admin_email,
                    now=utc_now,
                )
                accounts = Accounts(store, events, passwords, sign_ins, deleted=erasures.look, now=utc_now)
                servicer = AuthServicer(accounts, known, sign_ins, access_tokens)
                auth_pb2_grpc.add_AuthServiceServicer_to_server(servicer, server)
                second_factors_pb2_grpc.add_SecondFactorServiceServicer_to_server(
                    SecondFactorServicer(second_factors), server
                )
                tiers = read_tiers(config.tiers or FILE)
                subscriptions = SubscriptionServicer(
                    Subscriptions(SubscriptionStore(db), tiers, now=utc_now),
                    tiers,
                    secrets=config.webhook_secrets,
                    revenuecat=config.revenuecat_authorizations,
                    sandbox=config.revenuecat_sandbox == "on",
                    now=utc_now,
                )
                subscriptions_pb2_grpc.add_SubscriptionServiceServicer_to_server(subscriptions, server)
                async with erasures.running():
                    yield
