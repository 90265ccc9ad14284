"""Owns which versions of the apps are supported."""

from typing import NamedTuple


class Gate(NamedTuple):
    """What becomes of an app."""

    supported: bool
    update_available: bool
    store_url: str


class AppVersions:
    """The versions of the apps."""

    async def gate(self, platform: str, version: str) -> Gate:
        """What becomes of an app."""
        return Gate(supported=not version.startswith("0."), update_available=False, store_url="")
