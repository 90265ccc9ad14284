"""Owns the settings: one typed, frozen object read once from the environment."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from runtime.keys import parse_vault_keys

SERVICES: Final = ("auth", "sessions", "uploads", "health", "garmin", "websocket")


# RFC 7518, section 3.2.
MIN_SECRET_BYTES: Final = 32
_SSO: Final = re.compile(r"SATCHEL_SSO_([A-Z0-9][A-Z0-9_]{0,31})_(ISSUER|AUDIENCE|JWKS_URL)")


class ConfigError(Exception):
    """A setting is missing or cannot be read."""


class SsoProvider(BaseModel):
    """An OpenID provider, each field from SATCHEL_SSO_<PROVIDER>_<NAME>; what is empty is as the preset has it."""

    model_config = ConfigDict(frozen=True)

    issuer: str = ""
    """As it stands in its tokens, and where its discovery document is looked for."""
    audience: str = ""
    """The client ids that tokens may be for, separated by commas; empty: nobody signs in by this provider."""
    jwks_url: str = ""
    """Where its keys are; empty: the discovery document says."""

    @field_validator("issuer", "jwks_url")
    @classmethod
    def _safe(cls, value: str) -> str:
        return _safe_url(value)

    @property
    def audiences(self) -> frozenset[str]:
        """The client ids."""
        return frozenset(one.strip() for one in self.audience.split(",") if one.strip())


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
    smtp_url: str = Field("", pattern=r"^($|log:$|smtps?://[^/?#]+/?(\?starttls)?$)", repr=False)
    """smtp://user:password@host:587?starttls, smtps://..., or log: (mail is written to the log, codes and all, and not
    sent); empty: what is to be sent waits, and expires."""
    mail_from: str = ""
    """Whom mail is from, such as Satchel <no-reply@example.com>; needed where it is sent."""

    admin_email: str = ""
    """The account with this e-mail is administrator of its tenant; once the address is verified, where mail is sent."""
    guest_days: int = Field(90, ge=1)
    """Days after which a guest who has not been back is deleted."""

    single_user: str = Field("", pattern=r"^\s*($|[^@\s]+@[^@\s]+\s*$)")
    """Calls without a token act as the account with this e-mail, where runtime/single_user.py says so; empty: none."""
    single_user_anywhere: Literal["on", "off"] = "off"
    """Whether they do though others than the owner of this machine may reach the edge."""
    bind: str = ""
    """The address that the edge listens on; empty: nobody has said."""
    trusted_hops: int = Field(0, ge=0)
    """Proxies that stand before the edge."""

    vault_keys: SecretStr = SecretStr("")
    """id:base64 of 32 bytes, more of them behind commas, newest first: what seals stored credentials of other services;
    empty: key files in home/keys."""
    garmin_store_passwords: Literal["on", "off"] = "off"
    """Whether passwords of Garmin accounts are stored, sealed like the tokens."""
    garmin_jobs: int = Field(4, ge=1, le=100)
    """Synchronizations that a process carries out at the same time."""

    garmin_domain: Literal["garmin.com", "garmin.cn"] = "garmin.com"
    """Whose accounts are linked: garmin.cn has its own, for people in China."""
    garmin_url: str = ""
    """For tests: where Garmin's hosts are looked for, each as a first segment of the path; empty: at Garmin's."""

    auth_address: str = "127.0.0.1:7101"
    sessions_address: str = "127.0.0.1:7102"
    uploads_address: str = "127.0.0.1:7103"
    health_address: str = "127.0.0.1:7104"
    garmin_address: str = "127.0.0.1:7106"
    """Empty: the Garmin connector is not run here."""
    websocket_address: str = "127.0.0.1:7105"
    websocket_listen: str = "127.0.0.1:7180"
    """host:port where the WebSocket door takes connections; its address above only answers for its health."""
    metrics_address: str = ""
    """host:port of this process's Prometheus page; empty: none."""
    otlp_endpoint: str = Field("", pattern=r"^($|http://[^/?#@\s]+:[0-9]{1,5}/?$)")
    """http://host:port of an OpenTelemetry collector that takes OTLP by gRPC, for traces; empty: none."""

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
    security_events_days: int = Field(365, ge=1)
    """Days that security events are kept."""
    revocation_patience: float = Field(60.0, gt=0)
    """Seconds that a service takes access tokens without news of which sign-ins were ended."""
    tiers: Path | None = None
    """A file like runtime/tiers.json that takes its place; empty: none."""
    free_puzzles_per_day: int | None = Field(None, ge=0)
    """New puzzle sessions that a free account may store per UTC day of their timestamp; empty: as tiers.json says."""
    webhook_secret: SecretStr = SecretStr("")
    """Signs POST /v1/subscription/events; several, with commas between, while one takes another's place; empty: off."""
    revenuecat_authorization: SecretStr = SecretStr("")
    """The Authorization header of RevenueCat's webhook; several as above; empty: off."""
    revenuecat_sandbox: Literal["on", "off"] = "off"
    """Whether purchases in the stores' sandboxes count."""
    blobs: str = ""
    """Where files live: a directory, or s3://..., gs://..., az://...; empty: home/blobs."""
    upload_limits: Path | None = None
    """A file like services/uploads/limits.json that takes its place; empty: none."""
    domains: Path | None = None
    """A directory of schema files, each one a domain beside the built-in ones; empty: none."""
    alerts: Path | None = None
    """A file whose thresholds take the place of those in services/health/alerts.json; empty: none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    report_outcomes: Literal["on", "off"] = "on"
    """Whether services tell the health service how syncs and uploads end; off, it has no figures of them."""

    sso: Mapping[str, SsoProvider] = Field(default_factory=dict)
    """OpenID providers to sign in by, by their names in lower case."""
    supabase_issuer: str = ""
    """The issuer of a Supabase project's access tokens, which are accepted as they are; empty: none."""
    supabase_jwt_secret: SecretStr = SecretStr("")
    """What the project signs with, where it signs with HS256."""
    supabase_jwks_url: str = ""
    """Where the project's public keys are; empty, and without a secret: below the issuer."""
    supabase_tenant: int = Field(1, ge=1)
    """The tenant of all the project's users."""

    @field_validator("domains", "upload_limits", "tiers", "free_puzzles_per_day", "alerts", mode="before")
    @classmethod
    def _none_when_empty(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("trusted_hops", mode="before")
    @classmethod
    def _zero_when_empty(cls, value: object) -> object:
        return 0 if value == "" else value

    @field_validator("supabase_issuer", "supabase_jwks_url", "garmin_url")
    @classmethod
    def _safe(cls, value: str) -> str:
        return _safe_url(value)

    @field_validator("supabase_jwt_secret")
    @classmethod
    def _not_guessed(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"must have at least {MIN_SECRET_BYTES} bytes, as HS256 wants")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Config:
        if not self.supabase_issuer and (self.supabase_jwt_secret.get_secret_value() or self.supabase_jwks_url):
            raise ValueError("SATCHEL_SUPABASE_ISSUER says whose tokens they are; it is missing")
        if self.single_user and self.single_user_anywhere == "off":
            self._check_nobody_else_calls()
        return self

    def _check_nobody_else_calls(self) -> None:
        if not _is_loopback(self.bind):
            why = f"it listens on {self.bind}" if self.bind else "SATCHEL_BIND does not say where it listens"
        elif self.trusted_hops or not _is_loopback(urlsplit(self.links).hostname or ""):
            why = "SATCHEL_TRUSTED_HOPS or SATCHEL_PUBLIC_URL tells of a proxy that lets others in"
        else:
            return
        raise ValueError(
            f"SATCHEL_SINGLE_USER: whoever reaches the edge acts as this user, and {why}; "
            "SATCHEL_SINGLE_USER_ANYWHERE=on allows it"
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Adds the variables whose names say a provider's name."""
        return init_settings, _SsoSettings(settings_cls), env_settings

    @field_validator("vault_keys")
    @classmethod
    def _vault_keys_readable(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            parse_vault_keys(value.get_secret_value())
        return value

    @property
    def sends_mail(self) -> bool:
        """Whether mail leaves this installation, so that people can prove whose an address is."""
        return self.smtp_url not in ("", "log:")

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
    def reports_outcomes(self) -> bool:
        """Whether outcomes are reported to the health service."""
        return self.report_outcomes == "on"

    @property
    def links(self) -> str:
        """What links start with, without a slash at the end."""
        return (self.public_url or f"http://localhost:{self.port}").rstrip("/")

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """Each of the secrets that may sign an event of a subscription."""
        return _listed(self.webhook_secret)

    @property
    def revenuecat_authorizations(self) -> tuple[str, ...]:
        """Each of the values that RevenueCat may name itself by."""
        return _listed(self.revenuecat_authorization)

    def address(self, service: str) -> str:
        """Where `service` (one of SERVICES) listens: host:port."""
        return str(getattr(self, f"{service}_address"))


def _listed(secret: SecretStr) -> tuple[str, ...]:
    return tuple(one for part in secret.get_secret_value().split(",") if (one := part.strip()))


def from_environment() -> Config:
    """The settings of this process. Raises ConfigError with a sentence that names each wrong variable."""
    try:
        return Config()
    except ValidationError as error:
        wrong = [_sentence(one["loc"], one["msg"]) for one in error.errors()]
        hint = "; `make run` starts a PostgreSQL of its own and sets what the services need"
        raise ConfigError("; ".join(wrong) + hint) from None


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    return (
        f"SATCHEL_{'_'.join(map(str, place)).upper()}: {message.lower()}"
        if place
        else message.removeprefix("Value error, ")
    )


class _SsoSettings(PydanticBaseSettingsSource):
    """Gathers SATCHEL_SSO_<PROVIDER>_<NAME>."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, dict[str, str]] = {}
        for variable, value in os.environ.items():
            if named := _SSO.fullmatch(variable):
                found.setdefault(named[1].lower(), {})[named[2].lower()] = value
        return {"sso": found} if found else {}


def is_safe_url(text: str) -> bool:
    """Whether what is said there is the issuer's word: by https, or on this machine."""
    try:
        url = urlsplit(text)
        local = url.scheme == "http" and url.hostname in ("localhost", "127.0.0.1", "::1")
        return bool(url.hostname) and "@" not in url.netloc and (url.scheme == "https" or local)
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _safe_url(value: str) -> str:
    if value and not is_safe_url(value):
        raise ValueError("must be an https URL")
    return value
