"""Owns how a letter leaves: by SMTP, or into the log of a stack that somebody develops with."""

from __future__ import annotations

from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import Final
from urllib.parse import unquote, urlsplit

import aiosmtplib

from runtime.clock import utc_now
from runtime.config import Config, ConfigError
from runtime.telemetry import logger
from services.auth.mails_domain import Letter, Mailer, Refused

LOG: Final = "log:"
# Of one command; a whole attempt has its own deadline.
COMMAND_TIMEOUT: Final = 10.0
_PORTS: Final = {"smtp": 25, "starttls": 587, "smtps": 465}


def mailer_of(config: Config) -> Mailer | None:
    """Whom mail is given to under these settings, None: nobody. Raises ConfigError."""
    if not config.smtp_url:
        return None
    if config.smtp_url == LOG:
        return LogMailer()
    return SmtpMailer(config.smtp_url, config.mail_from)


class LogMailer:
    """Writes letters to the log, codes and all, for whoever runs everything on one machine."""

    async def send(self, letter: Letter) -> None:
        """Writes a line, at a level that every log but the quietest has."""
        code = {"one_time_code": letter.code} if letter.code else {}
        logger().warning("mail, not sent", to=letter.to, subject=letter.subject, **code, text=letter.text)


class SmtpMailer:
    """Gives letters to an SMTP server (RFC 5321), each on a connection of its own."""

    def __init__(self, url: str, sender: str) -> None:
        """`url` as Config.smtp_url, `sender` as Config.mail_from. Raises ConfigError."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if not parts.hostname or port == 0:
            raise ConfigError("SATCHEL_SMTP_URL: is not smtp://host:port or smtps://host:port")
        self._host = parts.hostname
        self._tls = parts.scheme == "smtps"
        self._start_tls = parts.query == "starttls"
        self._port = port or _PORTS["starttls" if self._start_tls else parts.scheme]
        self._username = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        name, address = parseaddr(sender)
        try:
            self._sender = Address(name, addr_spec=address)
        except (MessageError, ValueError, IndexError):
            raise ConfigError("SATCHEL_MAIL_FROM: is not an address, such as Satchel <no-reply@example.com>") from None
        if not self._sender.domain or not self._sender.username or not sender.isprintable():
            raise ConfigError("SATCHEL_MAIL_FROM: is needed beside SATCHEL_SMTP_URL, such as no-reply@example.com")

    async def send(self, letter: Letter) -> None:
        """Returns when the server has taken the letter.

        Raises Refused when it will never take it for this address; what is wrong with the server itself, or with how
        we sign in to it, raises aiosmtplib's errors, and may be put right.
        """
        message = self.message(letter)
        smtp = aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            username=self._username,
            password=self._password,
            use_tls=self._tls,
            start_tls=self._start_tls,
            timeout=COMMAND_TIMEOUT,
        )
        async with smtp:
            try:
                await smtp.send_message(message)
            except (ValueError, aiosmtplib.SMTPNotSupported):
                raise Refused("the server cannot write such an address") from None
            except aiosmtplib.SMTPRecipientsRefused as refusal:
                first = refusal.recipients[0]
                if first.code >= 500:
                    raise Refused(f"{first.code} for the address") from None
                raise
            except aiosmtplib.SMTPDataError as refusal:
                if refusal.code >= 500:
                    raise Refused(f"{refusal.code} for the letter") from None
                raise

    def message(self, letter: Letter) -> EmailMessage:
        """The letter in the form of RFC 5322. Raises Refused for what cannot be said in it."""
        message = EmailMessage(policy=SMTP)
        try:
            local, _, domain = letter.to.rpartition("@")
            if not local or not domain:
                raise Refused("no such address can be written")
            message["To"] = Address(username=local, domain=domain.encode("idna").decode())
            message["Subject"] = letter.subject
        except (MessageError, ValueError, UnicodeError):
            raise Refused("no such address can be written") from None
        message["From"] = self._sender
        message["Date"] = format_datetime(utc_now())
        message["Message-ID"] = f"<{letter.id}@{self._sender.domain}>"
        # No automatic answers (RFC 3834).
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(letter.text.strip() + "\n")
        return message
