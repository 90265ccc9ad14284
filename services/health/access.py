"""Owns whose figures a caller may read."""

from __future__ import annotations

from runtime.call import Principal
from runtime.errors import Failure, Reason, invalid


def tenant_of(caller: Principal, tenant_id: int) -> int:
    """The tenant that a caller means by `tenant_id`; 0: the own one.

    Raises Failure: FIELD_INVALID, FORBIDDEN for another tenant.
    """
    if tenant_id < 0:
        raise invalid("tenant_id", "must be 1 or more")
    if tenant_id not in (0, caller.tenant_id):
        raise Failure(Reason.FORBIDDEN, "This is another tenant.")
    return caller.tenant_id
