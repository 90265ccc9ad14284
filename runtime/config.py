"""Owns the settings: one typed, frozen object read once from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from runtime.keys import parse_vault_keys

SERVICES: Final = ("auth", "sessions", "uploads", "health", "websocket")


class ConfigError(Exception):
    """A setting is missing or cannot be read."""


class Config(BaseSettings):
    """Every setting, each from the environment variable SATCHEL_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="SATCHEL_", frozen=True, extra="ignore")

    home: Path = Path(".satchel")
    """Where keys, and with the embedded stack all data, live."""
    port: int = Field(8080, ge=1, le=65535)
    """The edge."""
    database_url: str = Field(min_length=1)
    """postgresql://..."""
    redis_url: str = ""
    """redis://... or unix://...; empty: none, rate limits are then counted per process."""
    public_url: str = ""
    """What links start with; http://localhost:<port> when empty."""
    rate_limits: Literal["on", "off"] = "on"
    admin_email: str = ""
    """The account with this e-mail is administrator of its tenant."""

    vault_keys: SecretStr = SecretStr("")
    """id:base64 of 32 bytes, more of them behind commas, newest first: what seals stored credentials of other services;
    empty: key files in home/keys."""
    garmin_store_passwords: Literal["on", "off"] = "off"
    """Whether passwords of Garmin accounts are stored, sealed like the tokens."""

    auth_address: str = "127.0.0.1:7101"
    sessions_address: str = "127.0.0.1:7102"
    uploads_address: str = "127.0.0.1:7103"
    health_address: str = "127.0.0.1:7104"
    websocket_address: str = "127.0.0.1:7105"
    websocket_listen: str = "127.0.0.1:7180"
    """host:port where the WebSocket door takes connections; its address above only answers for its health."""
    metrics_address: str = ""
    """host:port of this process's Prometheus page; empty: none."""

    database_connections: int = Field(8, ge=1, le=100)
    """Connections to PostgreSQL per process and service."""
    share_address: bool = True
    """Whether several processes may serve at the same address; off, a second one fails to start."""
    call_timeout: float = Field(15.0, gt=0)
    """Seconds a unary call may take when its caller names no shorter deadline."""
    drain_timeout: float = Field(8.0, ge=0)
    """Seconds that calls in flight get to finish on SIGTERM."""
    stream_idle_timeout: float = Field(300.0, gt=0)
    """Seconds that a sync stream lives without a word from its phone, or while it owes an ack."""
    stream_lifetime: float = Field(3600.0, gt=0)
    """Seconds that a sync stream lives at most."""
    streams_per_user: int = Field(20, ge=1)
    """Sync streams that a user may have open in one process."""
    sweep_interval: float = Field(60.0, gt=0)
    """Seconds, about, between two rounds of removing what has grown too old."""
    free_puzzles_per_day: int = Field(1, ge=0)
    """New puzzle sessions that a free account may store per UTC day of their timestamp."""
    blobs: str = ""
    """Where files live: a directory, or s3://..., gs://..., az://...; empty: home/blobs."""
    upload_limits: Path | None = None
    """A file like services/uploads/limits.json that takes its place; empty: none."""
    domains: Path | None = None
    """A directory of schema files, each one a domain beside the built-in ones; empty: none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("domains", "upload_limits", mode="before")
    @classmethod
    def _none_when_empty(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("vault_keys")
    @classmethod
    def _vault_keys_readable(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            parse_vault_keys(value.get_secret_value())
        return value

    @property
    def keys(self) -> Path:
        """The directory of the signing and mesh keys."""
        return self.home / "keys"

    @property
    def stores_garmin_passwords(self) -> bool:
        """Whether passwords of Garmin accounts are stored."""
        return self.garmin_store_passwords == "on"

    @property
    def limits_on(self) -> bool:
        """Whether rate limits are enforced."""
        return self.rate_limits == "on"

    @property
    def links(self) -> str:
        """What links start with, without a slash at the end."""
        return (self.public_url or f"http://localhost:{self.port}").rstrip("/")

    def address(self, service: str) -> str:
        """Where `service` (one of SERVICES) listens: host:port."""
        return str(getattr(self, f"{service}_address"))


def from_environment() -> Config:
    """The settings of this process. Raises ConfigError with a sentence that names each wrong variable."""
    try:
        return Config()
    except ValidationError as error:
        wrong = [f"SATCHEL_{str(one['loc'][0]).upper()}: {one['msg'].lower()}" for one in error.errors()]
        hint = "; `make run` starts a PostgreSQL of its own and sets what the services need"
        raise ConfigError("; ".join(wrong) + hint) from None
