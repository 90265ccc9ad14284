"""A mail server that takes letters in, refuses them, or is away, as a test asks."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from deploy.sockets import free_ports
from tests.polling import until

CODE = re.compile(r"^Your code: ([0-9A-Z]{4}-[0-9A-Z]{4})\r?$", re.MULTILINE)


class MailServer:
    """An SMTP server on a port of its own."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, user: tuple[str, str] | None = None) -> None:
        (self.port,) = free_ports(1)
        self.letters: list[EmailMessage] = []
        self.envelopes: list[Envelope] = []
        self.refused: dict[str, str] = {}
        """What is said to a recipient in place of yes."""
        self.busy = ""
        """What is said to every letter in place of yes."""
        self.attempts = 0
        self.waiting: asyncio.Event | None = None
        """Letters are answered once it is set."""
        self.sessions: list[Session] = []
        self._tls = tls
        self._user = user
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._session, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    def _session(self) -> SMTP:
        return SMTP(
            self,
            hostname="mail.test",
            tls_context=self._tls,
            require_starttls=self._tls is not None,
            auth_required=self._user is not None,
            authenticator=self._known,
        )

    def _known(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, login: Any) -> AuthResult:
        assert isinstance(login, LoginPassword)
        given = (login.login.decode(), login.password.decode())
        # Not handled: it is still to be said that it failed.
        return AuthResult(success=given == self._user, handled=False)

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            self.attempts += 1
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.attempts += 1
        if self.waiting is not None:
            await self.waiting.wait()
        if self.busy:
            return self.busy
        assert isinstance(envelope.content, bytes)
        letter = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(letter, EmailMessage)
        self.letters.append(letter)
        self.envelopes.append(envelope)
        self.sessions.append(session)
        return "250 taken"

    def to(self, email: str, subject: str = "") -> list[EmailMessage]:
        """The letters to an address, oldest first."""
        return [one for one in self.letters if one["To"] == email and subject in one["Subject"]]

    def codes(self, email: str) -> list[str]:
        """The codes in the letters to an address, oldest first."""
        return [code for one in self.to(email) for code in CODE.findall(one.get_content())]

    async def code(self, email: str, number: int = 1, *, seconds: float = 20) -> str:
        """The code in the last letter to an address, once so many letters with one have come."""

        async def come() -> bool:
            return len(self.codes(email)) >= number

        await until(come, seconds)
        return self.codes(email)[-1]


@asynccontextmanager
async def mail_server(**given: Any) -> AsyncIterator[MailServer]:
    """A mail server for as long as the block runs."""
    server = MailServer(**given)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
