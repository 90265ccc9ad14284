"""Owns how the auth service is put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from datetime import timedelta

import grpc
from satchel.auth.v1 import (
    auth_pb2_grpc,
    devices_pb2_grpc,
    emails_pb2_grpc,
    passwords_pb2_grpc,
    second_factors_pb2_grpc,
    security_events_pb2_grpc,
    sso_pb2_grpc,
    subscriptions_pb2_grpc,
)

from runtime.clock import utc_now
from runtime.config import Config
from runtime.database import Database, database
from runtime.identity import ServiceTokens
from runtime.issuers import issuer_client
from runtime.keys import home_key, mesh_secret, signing_keys
from runtime.mesh import SessionsClient, UploadsClient, channel
from runtime.sweeping import sweeping
from runtime.tiers import FILE, read_tiers
from services.auth.accounts_domain import Accounts, KnownAccounts
from services.auth.accounts_servicer import AuthServicer
from services.auth.accounts_store import AccountStore
from services.auth.attempts_domain import Attempts, Unlimited
from services.auth.attempts_store import AttemptStore
from services.auth.codes_domain import CodeBook, Codes
from services.auth.codes_store import CodeStore
from services.auth.devices_domain import Devices
from services.auth.devices_servicer import DeviceServicer
from services.auth.devices_store import DeviceStore
from services.auth.emails_domain import Emails
from services.auth.emails_servicer import EmailServicer
from services.auth.emails_store import EmailStore
from services.auth.erasures_domain import Erasures
from services.auth.erasures_store import ErasureStore
from services.auth.events_domain import SecurityEvents
from services.auth.events_servicer import SecurityEventServicer
from services.auth.events_store import EventStore
from services.auth.identities_domain import Identities
from services.auth.identities_servicer import SsoServicer
from services.auth.identities_store import IdentityStore
from services.auth.mailers import mailer_of
from services.auth.mails_domain import Mails, sending
from services.auth.mails_store import MailStore
from services.auth.passwords import Passwords, commonest
from services.auth.passwords_domain import PasswordChanges
from services.auth.passwords_servicer import PasswordServicer
from services.auth.passwords_store import PasswordStore
from services.auth.providers import providers
from services.auth.second_factors_domain import SecondFactors
from services.auth.second_factors_sealing import Sealing
from services.auth.second_factors_servicer import SecondFactorServicer
from services.auth.second_factors_store import SecondFactorStore
from services.auth.sign_ins_domain import SignIns
from services.auth.sign_ins_store import SignInStore
from services.auth.subscriptions_domain import Subscriptions
from services.auth.subscriptions_servicer import SubscriptionServicer
from services.auth.subscriptions_store import SubscriptionStore
from services.auth.sweeps_domain import Sweeps
from services.auth.sweeps_store import SweepStore
from services.auth.tokens import AccessTokens


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds the auth service to `server` for as long as the block runs."""
    async with database(config.database_url, connections=config.database_connections, name="auth") as db:
        await asyncio.to_thread(commonest)  # before the first sign-up, which would hold up everybody else's calls
        tokens = ServiceTokens(mesh_secret(config.keys), "auth")
        async with channel(config.sessions_address) as sessions, channel(config.uploads_address) as uploads:
            # Files first: whatever they still have to tell of themselves finds its user's records ended.
            # And first what was logged here while the account was about to go.
            events = EventStore(db)
            elsewhere = [
                events.forget,
                UploadsClient(uploads, tokens).erase_user,
                SessionsClient(sessions, tokens).erase_user,
            ]
            erasures = Erasures(ErasureStore(db), elsewhere, now=utc_now)
            async with AsyncExitStack() as stack:
                passwords = stack.enter_context(closing(Passwords()))
                http = await stack.enter_async_context(issuer_client())
                access_tokens = AccessTokens(signing_keys(config.keys))
                store = AccountStore(db)
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
                guard = Attempts(AttemptStore(db), events, now=utc_now) if config.limits_on else Unlimited()
                accounts = Accounts(store, events, passwords, sign_ins, guard, deleted=erasures.look, now=utc_now)
                servicer = AuthServicer(accounts, known, sign_ins, access_tokens)
                auth_pb2_grpc.add_AuthServiceServicer_to_server(servicer, server)
                identities = Identities(
                    IdentityStore(db), events, providers(config.sso, http, now=utc_now), known, sign_ins, now=utc_now
                )
                sso_pb2_grpc.add_SsoServiceServicer_to_server(SsoServicer(identities), server)
                devices = DeviceServicer(Devices(DeviceStore(db), now=utc_now))
                devices_pb2_grpc.add_DeviceServiceServicer_to_server(devices, server)
                log = SecurityEventServicer(SecurityEvents(events))
                security_events_pb2_grpc.add_SecurityEventServiceServicer_to_server(log, server)
                lifetime = timedelta(days=config.security_events_days)
                sweeps = Sweeps(SweepStore(db), events_lifetime=lifetime, now=utc_now)
                await stack.enter_async_context(_codes(config, server, db, events, passwords, known))
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
                async with erasures.running(), sweeping(sweeps.round, config.sweep_interval):
                    yield


@asynccontextmanager
async def _codes(
    config: Config,
    server: grpc.aio.Server,
    db: Database,
    events: EventStore,
    passwords: Passwords,
    known: KnownAccounts,
) -> AsyncIterator[None]:
    """Adds what goes by one-time codes, and sends the mail that they are in."""
    book, mails, mailer = CodeBook(mesh_secret(config.keys)), MailStore(db), mailer_of(config)
    async with AsyncExitStack() as stack:
        mailed = await stack.enter_async_context(sending(Mails(mails, mailer, book, now=utc_now) if mailer else None))
        codes = Codes(CodeStore(db), events, book, now=utc_now)
        changes = PasswordChanges(PasswordStore(db), mails, events, passwords, codes, mailed=mailed, now=utc_now)
        emails = Emails(EmailStore(db), mails, changes, codes, account=known.account, mailed=mailed, now=utc_now)
        passwords_pb2_grpc.add_PasswordServiceServicer_to_server(PasswordServicer(changes), server)
        emails_pb2_grpc.add_EmailServiceServicer_to_server(EmailServicer(emails), server)
        await stack.enter_async_context(sweeping(codes.sweep, config.sweep_interval))
        yield
