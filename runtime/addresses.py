"""Owns which addresses of clients are one and the same party."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final

# What one household or one phone is given of IPv6 (RFC 6177); whoever has one address there has all of them.
IPV6_PREFIX: Final = 64


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """The party that `address` belongs to: an IPv4 address alone, the /64 of an IPv6 one; other text as it is."""
    try:
        # A zone names an interface of this machine, and is no part of who calls.
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
