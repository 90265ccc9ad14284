"""Owns the two shapes of devices: domain values and messages."""

from __future__ import annotations

from uuid import UUID

from satchel.auth.v1 import devices_pb2 as pb

from runtime.clock import to_timestamp
from services.auth.devices_domain import Page, SignedInDevice


def device_to_pb(device: SignedInDevice, *, current: UUID) -> pb.Device:
    """A device as its owner sees it; `current` is the sign-in of the call."""
    return pb.Device(
        id=str(device.id),
        device_name=device.device_name,
        method=device.method,
        ip=device.ip,
        user_agent=device.user_agent,
        create_time=to_timestamp(device.create_time),
        last_use_time=to_timestamp(device.last_use_time),
        expire_time=to_timestamp(device.expire_time),
        current=device.id == current,
    )


def list_response(page: Page, *, current: UUID) -> pb.ListDevicesResponse:
    """The answer to a list."""
    return pb.ListDevicesResponse(
        devices=[device_to_pb(device, current=current) for device in page.devices], next_page_token=page.next_token
    )
