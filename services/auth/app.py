"""Owns how the auth service is put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta

import grpc
from satchel.auth.v1 import auth_pb2_grpc, deletions_pb2_grpc, exports_pb2_grpc, guests_pb2_grpc

from runtime.clock import utc_now
from runtime.config import Config
from runtime.database import database
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret, signing_keys
from runtime.mesh import SessionsClient, UploadsClient, channel
from runtime.sweeping import sweeping
from services.auth.accounts_domain import Accounts, KnownAccounts
from services.auth.accounts_servicer import AuthServicer
from services.auth.accounts_store import AccountStore
from services.auth.deletions_domain import Deletions, Receipts
from services.auth.deletions_servicer import DeletionServicer
from services.auth.deletions_store import DeletionStore
from services.auth.erasures_domain import Erasures
from services.auth.erasures_store import ErasureStore
from services.auth.events_store import EventStore
from services.auth.exports_domain import Exports
from services.auth.exports_servicer import ExportServicer
from services.auth.exports_store import ExportStore
from services.auth.guests_domain import Guests
from services.auth.guests_servicer import GuestServicer
from services.auth.guests_store import GuestStore
from services.auth.merges_domain import Merges
from services.auth.merges_store import MergeStore
from services.auth.passwords import Passwords, commonest
from services.auth.sign_ins_domain import SignIns
from services.auth.sign_ins_store import SignInStore
from services.auth.tokens import AccessTokens


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds the auth service to `server` for as long as the block runs."""
    async with database(config.database_url, connections=config.database_connections, name="auth") as db:
        await asyncio.to_thread(commonest)  # before the first sign-up, which would hold up everybody else's calls
        tokens = ServiceTokens(mesh_secret(config.keys), "auth")
        async with channel(config.sessions_address) as sessions, channel(config.uploads_address) as uploads:
            # Files first: whatever they still have to tell of themselves finds its user's records ended.
            files, records = UploadsClient(uploads, tokens), SessionsClient(sessions, tokens)
            elsewhere = [files.erase_user, records.erase_user]
            deletions = DeletionStore(db)
            erasures = Erasures(ErasureStore(db), elsewhere, receipts=deletions, now=utc_now)
            receipts = Receipts(mesh_secret(config.keys))
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
                accounts = Accounts(store, events, passwords, sign_ins, receipts, deleted=erasures.look, now=utc_now)
                guests = Guests(
                    GuestStore(db),
                    store,
                    sign_ins,
                    receipts,
                    lifetime=timedelta(days=config.guest_days),
                    deleted=erasures.look,
                    now=utc_now,
                )
                # Files first and once more: what was told of them in the guest's feed moves with it, and the ends of
                # those that were removed meanwhile are then told to the account, which now has their records.
                merges = Merges(
                    MergeStore(db),
                    access_tokens,
                    receipts,
                    [files.adopt, records.adopt, files.adopt],
                    deleted=erasures.look,
                    now=utc_now,
                )
                servicer = AuthServicer(accounts, known, sign_ins, access_tokens)
                auth_pb2_grpc.add_AuthServiceServicer_to_server(servicer, server)
                guests_pb2_grpc.add_GuestServiceServicer_to_server(GuestServicer(guests, merges), server)
                deletions_pb2_grpc.add_DeletionServiceServicer_to_server(DeletionServicer(Deletions(deletions)), server)
                exports = Exports(ExportStore(db), known.account, records.export, files.files, now=utc_now)
                exports_pb2_grpc.add_ExportServiceServicer_to_server(ExportServicer(exports), server)
                async with erasures.running(), merges.running(), sweeping(guests.sweep, config.sweep_interval):
                    yield
