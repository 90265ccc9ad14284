"""Owns that mail is sent: what waits in the outbox is written when its turn comes, and tried until it is accepted.

What asks for mail adds a row to the outbox, and that is all it does: whether an account has the address, and which code
it gets, is found out here. So a caller cannot tell by the time of an answer, and a copy of the database holds no code.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID, uuid4

from runtime.rounds import Rounds, pause_after
from runtime.telemetry import MAIL_ERRORS, MAILS, logger
from services.auth.codes_domain import LIFETIME, CodeBook, Purpose, shown

if TYPE_CHECKING:
    from services.auth.mails_store import MailStore

# After so long a replica that has taken a mail up is believed to be gone; longer than any attempt.
CLAIM: Final = timedelta(seconds=30)
ATTEMPT_TIMEOUT: Final = 20.0
MAX_ATTEMPTS: Final = 40
NOTICE_LIFETIME: Final = timedelta(hours=24)
# How many at once: one server that is slow about one address must not keep everybody waiting.
LANES: Final = 4

_TEXTS: Final = Path(__file__).parent / "mails.toml"


class Kind(StrEnum):
    """What a mail is about."""

    RESET = "reset"
    VERIFY = "verify"
    CHANGE = "change"
    TAKEN = "taken"
    """In place of CHANGE, to an address that has an account already; never in the outbox."""
    PASSWORD_CHANGED = "password_changed"  # noqa: S105  # a notice
    EMAIL_CHANGED = "email_changed"

    @property
    def purpose(self) -> Purpose | None:
        """What its code is good for; None: it has none."""
        return Purpose(self) if self in (Kind.RESET, Kind.VERIFY, Kind.CHANGE) else None


@dataclass(frozen=True, kw_only=True)
class Mail:
    """Something that is to be said to somebody."""

    id: UUID
    """Also that of its code, and behind its Message-ID: when it is sent twice, it is the same mail."""
    kind: Kind
    email: str
    account_id: UUID | None
    """None: it is for whoever has the address by then, if anybody."""
    create_time: datetime
    expire_time: datetime
    attempts: int = 0
    """That have failed."""


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A mail with its words."""

    id: UUID
    to: str
    subject: str
    text: str
    code: str
    """As in the text; empty: there is none."""

    def __repr__(self) -> str:
        return f"Letter(id={self.id})"


class Refused(Exception):
    """The server will not take this letter, however often it is tried."""


class Mailer(Protocol):
    """Whom letters are given to."""

    async def send(self, letter: Letter) -> None:
        """Returns when the letter is somebody else's to deliver. Raises Refused, or anything else to be tried again."""


def mail(kind: Kind, email: str, account_id: UUID | None, now: datetime) -> Mail:
    """A mail for the outbox."""
    lifetime = LIFETIME if kind.purpose else NOTICE_LIFETIME
    return Mail(id=uuid4(), kind=kind, email=email, account_id=account_id, create_time=now, expire_time=now + lifetime)


class Texts:
    """What mail says, from mails.toml."""

    def __init__(self) -> None:
        self._texts = tomllib.loads(_TEXTS.read_text("utf-8"))

    def letter(self, mail: Mail, kind: Kind, code: str) -> Letter:
        """The letter that says it."""
        words = {"code": code, "until": f"{mail.expire_time:%H:%M} UTC", "email": mail.email}
        text = self._texts[kind]
        return Letter(
            id=mail.id, to=mail.email, subject=text["subject"], text=Template(text["text"]).substitute(words), code=code
        )


class Mails:
    """Sends what is due; any number of replicas may do it at once."""

    def __init__(self, store: MailStore, mailer: Mailer, book: CodeBook, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._mailer = mailer
        self._book = book
        self._now = now
        self._texts = Texts()

    async def carry_out(self) -> None:
        """Sends all that is due; what fails is put off, longer each time. Raises when the database is away."""
        async with asyncio.TaskGroup() as lanes:
            lanes.create_task(self._lane(lanes, LANES - 1))

    async def _lane(self, lanes: asyncio.TaskGroup, more: int) -> None:
        while mail := await self._store.take(self._now(), CLAIM):
            if more:
                lanes.create_task(self._lane(lanes, more - 1))
                more = 0
            outcome = await self._send(mail)
            if outcome:
                MAILS.labels(mail.kind, outcome).inc()
                await self._store.finish(mail.id)
            else:
                MAIL_ERRORS.inc()
                await self._store.put_off(mail.id, self._now() + pause_after(mail.attempts))

    async def _send(self, mail: Mail) -> str:
        """What became of it; empty when it is to be tried again."""
        now = self._now()
        if mail.expire_time <= now or mail.attempts >= MAX_ATTEMPTS:
            logger().error("a mail was given up", mail=mail.id, kind=str(mail.kind), attempts=mail.attempts)
            return "given up"
        purpose = mail.kind.purpose
        code = self._book.code(mail.id, purpose) if purpose else ""
        kind = await self._store.prepare(mail, purpose, code, now)
        if kind is None:
            return "not wanted"
        letter = self._texts.letter(mail, kind, "" if kind is Kind.TAKEN else shown(code) if code else "")
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                await self._mailer.send(letter)
        except Refused as refusal:
            logger().warning("a mail was refused", mail=mail.id, kind=str(kind), user=mail.account_id, why=str(refusal))
            return "refused"
        except Exception as error:  # whatever it was, it is tried again until its time is over
            logger().warning("cannot send mail yet", mail=mail.id, kind=str(kind), error=repr(error))
            return ""
        return "sent"


@asynccontextmanager
async def sending(mails: Mails | None) -> AsyncIterator[Callable[[], None]]:
    """Sends what falls due for as long as the block runs; call what it yields once something was added.

    None: nothing is sent from here, and what waits may be another replica's to send.
    """
    if mails is None:
        logger().warning("no mail is sent: SATCHEL_SMTP_URL is not set")
        yield lambda: None
        return
    rounds = Rounds(mails.carry_out, name="send mail")
    async with rounds.running():
        yield rounds.look
