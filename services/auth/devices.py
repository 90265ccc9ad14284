"""Owns where the call that is being served comes from, as a sign-in remembers it."""

from __future__ import annotations

from runtime.call import current
from services.auth.sign_ins_domain import MAX_DEVICE_NAME_CHARS, Device, device_key


def device_of(name: str) -> Device:
    """Where the call that is being served comes from, under the name that it gives itself."""
    call = current.get()
    return Device(
        name=name or call.user_agent[:MAX_DEVICE_NAME_CHARS],
        ip=call.client_ip,
        user_agent=call.user_agent,
        key=device_key(call.metadata.get("x-device-id", "")),
    )
