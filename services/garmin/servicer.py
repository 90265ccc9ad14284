"""Owns the whole of satchel.garmin.v1.GarminService, put together from its groups of rpcs."""

from __future__ import annotations

from satchel.garmin.v1 import garmin_pb2_grpc as pb_grpc

from services.garmin.accounts_domain import Accounts
from services.garmin.accounts_servicer import AccountRpcs
from services.garmin.jobs_domain import Jobs
from services.garmin.jobs_servicer import JobRpcs


class GarminServicer(AccountRpcs, JobRpcs, pb_grpc.GarminServiceServicer):
    """satchel.garmin.v1.GarminService."""

    def __init__(self, accounts: Accounts, jobs: Jobs) -> None:
        self._accounts = accounts
        self._jobs = jobs
