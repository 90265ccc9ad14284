"""What the embedded stack reads from the environment; every other variable reaches the services as it is."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class Refused(Exception):
    """The stack can't start as asked; the message is one line for the person who asked."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    port: int
    # The address the edge listens on; the services themselves are never reachable from outside.
    bind: str
    home: Path
    # Empty: the embedded one.
    database_url: str
    redis_url: str
    # Processes per service.
    workers: int
    # Proxies before the edge, each of which adds the address of its caller to X-Forwarded-For.
    trusted_hops: int = 0
    # Where the metrics of all parts are, on loopback; 0: a free one.
    metrics_port: int = 0
    # http://host:port of an OpenTelemetry collector; empty: no traces.
    otlp_endpoint: str = ""

    @property
    def probe_host(self) -> str:
        """Where this machine reaches the edge."""
        address = ipaddress.ip_address(self.bind)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"
        return self.bind

    @property
    def public_url(self) -> str:
        host = self.probe_host
        if ipaddress.ip_address(host).is_loopback:
            host = "localhost"
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Raises Refused for a value that makes no sense."""
    bind = environment.get("SATCHEL_BIND") or "127.0.0.1"
    try:
        ipaddress.ip_address(bind)
    except ValueError:
        raise Refused(f"SATCHEL_BIND is an IP address of this machine, not {bind!r}") from None
    return Settings(
        port=_number(environment, "SATCHEL_PORT", 8080, range(1, 65536)),
        bind=bind,
        home=Path(environment.get("SATCHEL_HOME") or ".satchel").expanduser().absolute(),
        database_url=environment.get("SATCHEL_DATABASE_URL", ""),
        redis_url=environment.get("SATCHEL_REDIS_URL", ""),
        workers=_number(environment, "WORKERS", 1, range(1, 65)),
        trusted_hops=_number(environment, "SATCHEL_TRUSTED_HOPS", 0, range(17)),
        metrics_port=_number(environment, "SATCHEL_METRICS_PORT", 0, range(65536)),
        otlp_endpoint=environment.get("SATCHEL_OTLP_ENDPOINT", ""),
    )


def _number(environment: Mapping[str, str], name: str, default: int, allowed: range) -> int:
    text = environment.get(name) or str(default)
    if not text.isascii() or not text.isdecimal() or int(text) not in allowed:
        raise Refused(f"{name} is a number from {allowed.start} to {allowed.stop - 1}, not {text!r}")
    return int(text)
