"""The embedded stack as parts: storage, services and edge, each knowing the others' addresses."""

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from deploy.edge import ADMIN_SOCKET, envoy_part
from deploy.envoy.edge import bootstrap
from deploy.envoy.routes import WEBSOCKET_CLUSTER
from deploy.parts import ROOT, Part
from deploy.postgres import postgres_part
from deploy.redis import redis_part
from deploy.settings import Settings
from deploy.sockets import free_ports, http_get, socket_directory

SERVICES = ("auth", "sessions", "uploads", "health", "garmin", "websocket")
REPORTED_TO = "health"
LOOPBACK = "127.0.0.1"
# Where the WebSocket door takes connections; its other port is for gRPC, like everybody's.
DOOR = "websocket-listen"
# Whoever tries it out has no mail server: what would be sent is in the log.
MAIL_TO_LOG = "log:"


@dataclass(frozen=True)
class Stack:
    """Builds the parts, in the order they start in: an address is known before the part that is told it."""

    settings: Settings
    # What every service finds in its environment.
    environment: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    @classmethod
    def build(cls, settings: Settings) -> "Stack":
        numbers = free_ports(len(SERVICES) * (1 + settings.workers) + 1)
        workers = [f"{name}-{n}" for name in SERVICES for n in range(1, settings.workers + 1)]
        ports = dict(zip((*SERVICES, *workers, DOOR), numbers, strict=True))
        addresses = {f"SATCHEL_{name.upper()}_ADDRESS": f"{LOOPBACK}:{ports[name]}" for name in SERVICES}
        environment = {
            **os.environ,
            **addresses,
            "SATCHEL_WEBSOCKET_LISTEN": f"{LOOPBACK}:{ports[DOOR]}",
            "SATCHEL_HOME": str(settings.home),
            "SATCHEL_PORT": str(settings.port),
            "SATCHEL_BIND": settings.bind,
            "SATCHEL_SMTP_URL": os.environ.get("SATCHEL_SMTP_URL") or MAIL_TO_LOG,
            "PYTHONUNBUFFERED": "1",
        }
        return cls(settings, environment, ports)

    @property
    def run(self) -> Path:
        """Socket files, pid files and written configuration: nothing that outlives a run."""
        return self.settings.home / "run"

    def log(self, name: str) -> Path:
        return self.settings.home / "logs" / f"{name}.log"

    def pid_file(self, name: str) -> Path:
        return self.run / f"{name}.pid"

    def storage(self) -> list[Part]:
        """PostgreSQL and Redis, as far as no external one is named. The services learn where they are."""
        parts = []
        if not self.settings.database_url:
            postgres = postgres_part(
                self.settings.home / "postgres", log=self.log("postgres"), pid_file=self.pid_file("postgres")
            )
            self.environment["SATCHEL_DATABASE_URL"] = postgres.url
            parts.append(postgres)
        if not self.settings.redis_url:
            redis = redis_part(self.run, log=self.log("redis"), pid_file=self.pid_file("redis"))
            if redis:
                self.environment["SATCHEL_REDIS_URL"] = redis.url
                parts.append(redis)
        return parts

    def migration(self) -> Part:
        """Brings every schema to its newest version, and ends."""
        return self._module("services.migrate", "migrate")

    def services(self) -> list[list[Part]]:
        """Every service, as many processes of each as asked for, on one address per service, in two tiers.

        The one that is stopped last takes what the others report until they end.
        """
        numbers = range(1, self.settings.workers + 1)
        reporting = [one for one in SERVICES if one != REPORTED_TO]
        return [
            [self._process(service, number) for service in tier for number in numbers]
            for tier in ([REPORTED_TO], reporting)
        ]

    @property
    def admin(self) -> Path:
        """The socket file of Envoy's admin page."""
        return socket_directory(self.run, ADMIN_SOCKET) / ADMIN_SOCKET

    def edge(self) -> Part:
        """Envoy, in front of the services."""
        admin = self.admin
        return envoy_part(
            bootstrap(
                listen=(self.settings.bind, self.settings.port),
                admin_path=str(admin),
                services={
                    name: (LOOPBACK, self.ports[DOOR if name == WEBSOCKET_CLUSTER else name]) for name in SERVICES
                },
                descriptor_set=ROOT / "gen" / "satchel.pb",
                trusted_hops=self.settings.trusted_hops,
                otlp=_address(self.settings.otlp_endpoint),
            ),
            config=self.run / "envoy.json",
            admin=admin,
            url=self.settings.public_url,
            log=self.log("envoy"),
            pid_file=self.pid_file("envoy"),
        )

    def _process(self, service: str, number: int) -> Part:
        name = f"{service}-{number}" if self.settings.workers > 1 else service
        # All processes of a service share its address; this one is each process's own.
        own = (LOOPBACK, self.ports[f"{service}-{number}"])

        async def ready() -> bool:
            return (await http_get(own, "/readyz"))[0] == 200

        return replace(
            self._module(f"services.{service}", name, SATCHEL_METRICS_ADDRESS=f"{own[0]}:{own[1]}"),
            url=f"{LOOPBACK}:{self.ports[DOOR if service == WEBSOCKET_CLUSTER else service]}",
            metrics=f"{own[0]}:{own[1]}",
            ready=ready,
        )

    def _module(self, module: str, name: str, **extra: str) -> Part:
        return Part(
            name=name,
            command=[sys.executable, "-m", module],
            log=self.log(name),
            env={**self.environment, **extra},
            pid_file=self.pid_file(name),
        )


def _address(url: str) -> tuple[str, int] | None:
    """The host and port of a URL; None for none. The services check its form, and end the start if it has another."""
    parts = urlsplit(url)
    try:
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:
        return None
