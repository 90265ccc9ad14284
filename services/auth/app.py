"""Owns how the auth service is put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import grpc
from satchel.auth.v1 import (
    application_tokens_pb2_grpc,
    auth_pb2_grpc,
    deletions_pb2_grpc,
    devices_pb2_grpc,
    emails_pb2_grpc,
    exports_pb2_grpc,
    garmin_credentials_pb2_grpc,
    guests_pb2_grpc,
    passwords_pb2_grpc,
    second_factors_pb2_grpc,
    security_events_pb2_grpc,
    sso_pb2_grpc,
    subscriptions_pb2_grpc,
    token_exchange_pb2_grpc,
    users_pb2_grpc,
)

from runtime.backlogs import measured
from runtime.call import Role
from runtime.clock import utc_now
from runtime.config import Config
from runtime.database import Database, database
from runtime.identity import Revocations, ServiceTokens, Verifier
from runtime.issuers import issuer_client
from runtime.keys import mesh_secret, parse_vault_keys, signing_keys, vault_keys
from runtime.mesh import GarminClient, HealthClient, SessionsClient, UploadsClient, channel
from runtime.sweeping import sweeping
from runtime.tiers import FILE, read_tiers
from services.auth.accounts import Account
from services.auth.accounts_domain import Accounts, KnownAccounts
from services.auth.accounts_servicer import AuthServicer
from services.auth.accounts_store import AccountStore
from services.auth.application_tokens_domain import ApplicationTokens
from services.auth.application_tokens_servicer import ApplicationTokenServicer
from services.auth.application_tokens_store import ApplicationTokenStore
from services.auth.attempts_domain import Attempts, Unlimited
from services.auth.attempts_store import AttemptStore
from services.auth.codes_domain import CodeBook, Codes
from services.auth.codes_store import CodeStore
from services.auth.deletions_domain import Deletions, Receipts
from services.auth.deletions_servicer import DeletionServicer
from services.auth.deletions_store import DeletionStore
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
from services.auth.exports_domain import Exports
from services.auth.exports_servicer import ExportServicer
from services.auth.exports_store import ExportStore
from services.auth.garmin_credentials_domain import GarminCredentialVault
from services.auth.garmin_credentials_servicer import GarminCredentialServicer
from services.auth.garmin_credentials_store import GarminCredentialStore
from services.auth.guests_domain import Guests
from services.auth.guests_servicer import GuestServicer
from services.auth.guests_store import GuestStore
from services.auth.identities_domain import Identities
from services.auth.identities_servicer import SsoServicer
from services.auth.identities_store import IdentityStore
from services.auth.mailers import mailer_of
from services.auth.mails_domain import Mails, sending
from services.auth.mails_store import MailStore
from services.auth.merges_domain import Merges
from services.auth.merges_store import MergeStore
from services.auth.passwords import Passwords, commonest
from services.auth.passwords_domain import PasswordChanges
from services.auth.passwords_servicer import PasswordServicer
from services.auth.passwords_store import PasswordStore
from services.auth.providers import providers
from services.auth.roles_domain import NamedAdministrator
from services.auth.second_factors_domain import SecondFactors
from services.auth.second_factors_servicer import SecondFactorServicer
from services.auth.second_factors_store import SecondFactorStore
from services.auth.sign_ins_domain import SignIns
from services.auth.sign_ins_store import SignInStore
from services.auth.subscriptions_domain import Subscriptions
from services.auth.subscriptions_servicer import SubscriptionServicer
from services.auth.subscriptions_store import SubscriptionStore
from services.auth.sweeps_domain import Sweeps
from services.auth.sweeps_store import SweepStore
from services.auth.token_exchange_domain import TokenExchange
from services.auth.token_exchange_servicer import TokenExchangeServicer
from services.auth.tokens import AccessTokens
from services.auth.users_domain import Users
from services.auth.users_servicer import UserServicer
from services.auth.vault import Vault


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds the auth service to `server` for as long as the block runs."""
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(
            database(config.database_url, connections=config.database_connections, name="auth")
        )
        await asyncio.to_thread(commonest)  # before the first sign-up, which would hold up everybody else's calls
        parts = _parts(config, db, stack.enter_context(closing(Passwords())))
        for adding in (_accounts, _identities, _codes):
            await stack.enter_async_context(adding(parts, server))
        _add_sign_ins(parts, server)
        _add_subscriptions(parts, server)
        _add_programs(parts, server)
        yield


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What several groups of rpcs are made of."""

    config: Config
    db: Database
    store: AccountStore
    events: EventStore
    known: KnownAccounts
    role_of: Callable[[Account], Role]
    passwords: Passwords
    access_tokens: AccessTokens
    second_factors: SecondFactors
    sign_ins: SignIns
    garmin: GarminCredentialVault


def _parts(config: Config, db: Database, passwords: Passwords) -> _Parts:
    store, events = AccountStore(db), EventStore(db)
    known = KnownAccounts(store, now=utc_now)
    access_tokens = AccessTokens(signing_keys(config.keys))
    sealing = vault(config, "second_factors")
    second_factors = SecondFactors(SecondFactorStore(db), events, sealing, passwords, now=utc_now)
    named = NamedAdministrator(email=config.admin_email, must_be_verified=config.sends_mail)
    sign_ins = SignIns(
        SignInStore(db),
        events,
        access_tokens,
        second_factors,
        account=known.account,
        role_of=named.role_of,
        now=utc_now,
    )
    garmin = GarminCredentialVault(
        GarminCredentialStore(db),
        vault(config, "garmin_credentials"),
        stores_passwords=config.stores_garmin_passwords,
        now=utc_now,
    )
    return _Parts(
        config=config,
        db=db,
        store=store,
        events=events,
        known=known,
        role_of=named.role_of,
        passwords=passwords,
        access_tokens=access_tokens,
        second_factors=second_factors,
        sign_ins=sign_ins,
        garmin=garmin,
    )


@asynccontextmanager
async def _accounts(parts: _Parts, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds accounts from their beginning, as guests or not, to their end, which reaches into the other services."""
    config, db, store, events = parts.config, parts.db, parts.store, parts.events
    tokens = ServiceTokens(mesh_secret(config.keys), "auth")
    async with (
        channel(config.sessions_address) as sessions,
        channel(config.uploads_address) as uploads,
        channel(config.health_address) as health,
        channel(config.garmin_address) if config.garmin_address else nullcontext() as garmin,
    ):
        files, records = UploadsClient(uploads, tokens), SessionsClient(sessions, tokens)
        # First what was logged here while the account was about to go. Then what brings more from elsewhere. And files
        # before records: whatever they still have to tell of themselves finds its user's records ended. Devices last:
        # what is counted of the end is theirs.
        elsewhere = [
            events.forget,
            *([GarminClient(garmin, tokens).erase_user] if garmin is not None else []),
            files.erase_user,
            records.erase_user,
            HealthClient(health, tokens).erase_user,
        ]
        deletions, receipts = DeletionStore(db), Receipts(mesh_secret(config.keys))
        erasures = Erasures(ErasureStore(db), elsewhere, receipts=deletions, now=utc_now)
        guard = Attempts(AttemptStore(db), events, now=utc_now) if config.limits_on else Unlimited()
        accounts = Accounts(
            store, events, parts.passwords, parts.sign_ins, guard, receipts, deleted=erasures.look, now=utc_now
        )
        guests = Guests(
            GuestStore(db),
            store,
            parts.sign_ins,
            receipts,
            deleted=erasures.look,
            now=utc_now,
        )
        # Files first and once more: what was told of them in the guest's feed moves with it, and the ends of those that
        # were removed meanwhile are then told to the account, which now has their records.
        merges = Merges(
            MergeStore(db),
            parts.known,
            parts.access_tokens,
            receipts,
            [files.adopt, records.adopt, files.adopt],
            deleted=erasures.look,
            now=utc_now,
        )
        exports = Exports(ExportStore(db), parts.known.of, records.export, files.files, parts.garmin.shown, now=utc_now)
        auth_pb2_grpc.add_AuthServiceServicer_to_server(
            AuthServicer(accounts, parts.known, parts.sign_ins, parts.access_tokens), server
        )
        guests_pb2_grpc.add_GuestServiceServicer_to_server(GuestServicer(guests, merges), server)
        deletions_pb2_grpc.add_DeletionServiceServicer_to_server(DeletionServicer(Deletions(deletions)), server)
        exports_pb2_grpc.add_ExportServiceServicer_to_server(ExportServicer(exports), server)
        sweeps = Sweeps(
            SweepStore(db),
            events_lifetime=timedelta(days=config.security_events_days),
            idle_guests=guests.idle,
            guest_lifetime=timedelta(days=config.guest_days),
            now=utc_now,
        )
        async with (
            erasures.running(),
            merges.running(),
            sweeping(sweeps.round, config.sweep_interval),
        ):
            yield


@asynccontextmanager
async def _identities(parts: _Parts, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds sign-in by other providers."""
    async with issuer_client() as http:
        identities = Identities(
            IdentityStore(parts.db),
            parts.events,
            providers(parts.config.sso, http, now=utc_now),
            parts.known,
            parts.sign_ins,
            parts.second_factors,
            now=utc_now,
        )
        sso_pb2_grpc.add_SsoServiceServicer_to_server(SsoServicer(identities), server)
        yield


@asynccontextmanager
async def _codes(parts: _Parts, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds what goes by one-time codes, and sends the mail that they are in."""
    config, db, events = parts.config, parts.db, parts.events
    book, mails, mailer = CodeBook(mesh_secret(config.keys)), MailStore(db), mailer_of(config)
    codes = Codes(CodeStore(db), events, book, now=utc_now)
    async with (
        measured("mails", mails.backlog, now=utc_now),
        sending(Mails(mails, mailer, book, now=utc_now) if mailer else None) as mailed,
    ):
        changes = PasswordChanges(
            PasswordStore(db), mails, events, parts.passwords, codes, account=parts.known.of, mailed=mailed, now=utc_now
        )
        emails = Emails(EmailStore(db), mails, changes, codes, account=parts.known.of, mailed=mailed, now=utc_now)
        passwords_pb2_grpc.add_PasswordServiceServicer_to_server(PasswordServicer(changes), server)
        emails_pb2_grpc.add_EmailServiceServicer_to_server(EmailServicer(emails), server)
        yield


def _add_sign_ins(parts: _Parts, server: grpc.aio.Server) -> None:
    devices = Devices(DeviceStore(parts.db), now=utc_now)
    devices_pb2_grpc.add_DeviceServiceServicer_to_server(DeviceServicer(devices), server)
    security_events_pb2_grpc.add_SecurityEventServiceServicer_to_server(
        SecurityEventServicer(SecurityEvents(parts.events)), server
    )
    second_factors_pb2_grpc.add_SecondFactorServiceServicer_to_server(
        SecondFactorServicer(parts.second_factors), server
    )


def _add_subscriptions(parts: _Parts, server: grpc.aio.Server) -> None:
    config, tiers = parts.config, read_tiers(parts.config.tiers or FILE)
    subscriptions = SubscriptionServicer(
        Subscriptions(SubscriptionStore(parts.db), tiers, now=utc_now),
        tiers,
        secrets=config.webhook_secrets,
        revenuecat=config.revenuecat_authorizations,
        sandbox=config.revenuecat_sandbox == "on",
        now=utc_now,
    )
    subscriptions_pb2_grpc.add_SubscriptionServiceServicer_to_server(subscriptions, server)


def _add_programs(parts: _Parts, server: grpc.aio.Server) -> None:
    """Adds what services and applications call: users, their tokens and credentials, and acting in a user's name."""
    db = parts.db
    users = Users(parts.store, parts.known, parts.passwords, now=utc_now)
    applications = ApplicationTokens(ApplicationTokenStore(db), users, now=utc_now)
    exchange = _token_exchange(parts, applications)
    users_pb2_grpc.add_UserServiceServicer_to_server(UserServicer(users, parts.role_of), server)
    application_tokens_pb2_grpc.add_ApplicationTokenServiceServicer_to_server(
        ApplicationTokenServicer(applications), server
    )
    garmin_credentials_pb2_grpc.add_GarminCredentialServiceServicer_to_server(
        GarminCredentialServicer(parts.garmin), server
    )
    token_exchange_pb2_grpc.add_TokenExchangeServiceServicer_to_server(TokenExchangeServicer(exchange), server)


def vault(config: Config, table: str) -> Vault:
    """The vault that seals rows of a table; reads its keys anew each time when they are files."""
    if text := config.vault_keys.get_secret_value():
        given = parse_vault_keys(text)
        return Vault(table, lambda: given)
    return Vault(table, lambda: vault_keys(config.keys))


def _token_exchange(parts: _Parts, applications: ApplicationTokens) -> TokenExchange:
    async def keys() -> list[dict[str, str]]:
        return parts.access_tokens.public_keys()

    verifier = Verifier(
        fetch_keys=keys,
        mesh_secret=mesh_secret(parts.config.keys),
        revocations=Revocations(),  # what was ended is asked of the database
        resolve=applications.resolve_one,
    )
    return TokenExchange(parts.store, SignInStore(parts.db), parts.events, parts.access_tokens, verifier, now=utc_now)
