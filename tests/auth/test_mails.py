"""Mail: sent once, through a real server, whatever is away or dies meanwhile, and to nobody it was not meant for."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from satchel.auth.v1 import auth_pb2, auth_pb2_grpc, passwords_pb2, passwords_pb2_grpc
from structlog.testing import capture_logs

from deploy.parts import running
from runtime.config import Config, ConfigError, from_environment
from runtime.database import Database, database
from services.auth.accounts import Account, Subscription
from services.auth.accounts_store import AccountStore
from services.auth.codes_domain import LIFETIME, CodeBook
from services.auth.events_domain import Kind as EventKind
from services.auth.events_domain import SecurityEvent
from services.auth.mailers import LogMailer, SmtpMailer, mailer_of
from services.auth.mails_domain import CLAIM, MAX_ATTEMPTS, Kind, Letter, Mail, Mailer, Mails, Refused, mail
from services.auth.mails_store import MailStore
from services.auth.sign_ins_domain import Device, SignIn
from tests.auth.test_receipts import let_claims_pass
from tests.conftest import config_for, service_part
from tests.factories import PASSWORD
from tests.mailbox import MailServer, mail_server

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)
SENDER = "Satchel <no-reply@satchel.test>"
BOOK = CodeBook(b"a secret of tests")


class Clock:
    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> datetime:
        return self.time

    def later(self, **by: float) -> None:
        self.time += timedelta(**by)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with database(database_url, connections=8, name="test") as opened:
        yield opened


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with mail_server() as started:
        yield started


async def account(db: Database) -> Account:
    one = Account(
        id=uuid4(),
        email=f"{uuid4().hex}@example.com",
        tenant_id=1,
        role="user",
        create_time=NOW,
        subscription=Subscription(tier="free", status="inactive", end_time=None, cancel_at_period_end=False),
    )
    sign_in = SignIn(
        id=uuid4(),
        account_id=one.id,
        device=Device(name="", ip="", user_agent=""),
        method="password",
        token_key=b"",
        current_digest=b"",
        create_time=NOW,
        expire_time=NOW + timedelta(days=30),
    )
    await AccountStore(db).create(one, "hash", sign_in, SecurityEvent(kind=EventKind.SIGNED_UP, account_id=one.id))
    return one


async def asked(db: Database, clock: Clock, kind: Kind = Kind.RESET) -> Mail:
    """A mail in the outbox, to an account of its own."""
    one = await account(db)
    added = mail(kind, one.email, None if kind is Kind.RESET else one.id, clock())
    await MailStore(db).add(added)
    return added


async def waiting(db: Database) -> int:
    async with db.statements() as statements:
        cursor = await statements.connection.execute("SELECT count(*) AS waiting FROM auth.mails")
        row = await cursor.fetchone()
        assert row is not None
        return int(row["waiting"])


def mails_of(db: Database, clock: Clock, mailer: Mailer) -> Mails:
    return Mails(MailStore(db), mailer, BOOK, now=clock)


def letter(to: str = "ada@example.com", subject: str = "Hello", text: str = "Words.") -> Letter:
    return Letter(id=uuid4(), to=to, subject=subject, text=text, code="")


class TestSending:
    async def test_a_mail_arrives_once(self, db: Database, clock: Clock, server: MailServer) -> None:
        one = await asked(db, clock)
        mails = mails_of(db, clock, SmtpMailer(server.url, SENDER))
        for _ in range(3):
            await mails.carry_out()
            clock.later(seconds=120)
        (received,) = server.letters
        assert (received["To"], received["From"]) == (one.email, SENDER)
        assert received["Message-ID"] == f"<{one.id}@satchel.test>"
        assert received["Auto-Submitted"] == "auto-generated"
        assert server.codes(one.email)
        assert "10:30 UTC" in received.get_content()
        assert await waiting(db) == 0

    async def test_many_replicas_send_each_once(self, db: Database, clock: Clock, server: MailServer) -> None:
        sent = [await asked(db, clock) for _ in range(12)]
        replicas = [mails_of(db, clock, SmtpMailer(server.url, SENDER)) for _ in range(3)]
        await asyncio.gather(*(replica.carry_out() for replica in replicas))
        assert sorted(one["To"] for one in server.letters) == sorted(one.email for one in sent)

    async def test_a_server_that_is_away_gets_it_when_it_is_back(
        self, db: Database, clock: Clock, server: MailServer
    ) -> None:
        one = await asked(db, clock)
        mails = mails_of(db, clock, SmtpMailer(server.url, SENDER))
        await server.stop()
        for _ in range(5):
            await mails.carry_out()
            clock.later(minutes=1)
        await server.start()
        await mails.carry_out()
        assert len(server.to(one.email)) == 1

    async def test_a_server_that_is_busy_is_asked_again_later_each_time(
        self, db: Database, clock: Clock, server: MailServer
    ) -> None:
        await asked(db, clock)
        mails = mails_of(db, clock, SmtpMailer(server.url, SENDER))
        server.busy = "451 try again"
        tries = []
        for second in range(16):
            clock.time = NOW + timedelta(seconds=second)
            before = server.attempts
            await mails.carry_out()
            if server.attempts > before:
                tries.append(second)
        assert tries == [0, 1, 3, 7, 15]
        server.busy = ""
        clock.later(seconds=60)
        await mails.carry_out()
        assert len(server.letters) == 1

    @pytest.mark.parametrize("what", ["address", "letter"])
    async def test_what_the_server_refuses_for_good_is_dropped(
        self, db: Database, clock: Clock, server: MailServer, what: str
    ) -> None:
        one, other = await asked(db, clock), await asked(db, clock)
        if what == "address":
            server.refused[one.email] = "550 no such mailbox"
        else:
            server.busy = "554 no"
        mails = mails_of(db, clock, SmtpMailer(server.url, SENDER))
        with capture_logs() as logs:
            await mails.carry_out()
        clock.later(minutes=2)
        await mails.carry_out()
        assert (server.attempts, await waiting(db)) == (2, 0)
        assert len(server.to(other.email)) == (what == "address")
        assert not any(one.email in str(line) for line in logs), "the log knows it by its id"

    async def test_a_server_that_never_takes_it_is_not_asked_for_ever(
        self, db: Database, clock: Clock, server: MailServer
    ) -> None:
        await asked(db, clock, Kind.PASSWORD_CHANGED)
        server.busy = "451 try again"
        mails = mails_of(db, clock, SmtpMailer(server.url, SENDER))
        for _ in range(MAX_ATTEMPTS + 5):
            await mails.carry_out()
            clock.later(minutes=2)
        assert (server.attempts, await waiting(db)) == (MAX_ATTEMPTS, 0)

    async def test_a_mail_dies_with_its_code(self, db: Database, clock: Clock, server: MailServer) -> None:
        await asked(db, clock)
        clock.time += LIFETIME
        await mails_of(db, clock, SmtpMailer(server.url, SENDER)).carry_out()
        assert (server.letters, await waiting(db)) == ([], 0)

    async def test_one_that_a_replica_took_down_with_it_is_sent_by_another_with_the_same_code(
        self, db: Database, clock: Clock, server: MailServer
    ) -> None:
        one = await asked(db, clock)
        server.waiting = asyncio.Event()
        dying = asyncio.create_task(mails_of(db, clock, SmtpMailer(server.url, SENDER)).carry_out())
        while not server.attempts:  # the code is made, the letter on its way
            await asyncio.sleep(0.01)
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        server.waiting.set()
        other = mails_of(db, clock, SmtpMailer(server.url, SENDER))
        await other.carry_out()
        clock.time += CLAIM
        await other.carry_out()
        assert server.letters
        assert len(set(server.codes(one.email))) == 1
        assert {received["Message-ID"] for received in server.letters} == {f"<{one.id}@satchel.test>"}
        assert await waiting(db) == 0

    async def test_a_used_code_is_never_made_good_again(self, db: Database, clock: Clock, server: MailServer) -> None:
        """The letter came, the answer did not: while it is sent again its code may have been used."""
        one = await asked(db, clock)
        store = MailStore(db)
        assert await store.take(NOW, CLAIM)
        code = BOOK.code(one.id, one.kind.purpose or pytest.fail("no code"))
        assert await store.prepare(one, one.kind.purpose, code, NOW)
        async with db.statements() as statements:
            await statements.connection.execute("UPDATE auth.codes SET use_time = now()")
        clock.time += CLAIM
        await mails_of(db, clock, SmtpMailer(server.url, SENDER)).carry_out()
        assert (server.letters, await waiting(db)) == ([], 0)

    async def test_what_was_asked_for_before_a_kill_is_sent_after_it(
        self, database_url: str, tmp_path: Path, server: MailServer
    ) -> None:
        email = f"{uuid4().hex}@example.com"
        config = config_for(tmp_path / "home", database_url=database_url)
        settings = {"smtp_url": server.url, "mail_from": SENDER}
        await server.stop()
        async with (
            running(service_part("auth", config, tmp_path, **settings)) as child,
            grpc.aio.insecure_channel(config.auth_address) as channel,
        ):
            sign_up = auth_pb2.SignUpRequest(email=email, password=PASSWORD)
            await auth_pb2_grpc.AuthServiceStub(channel).SignUp(sign_up, wait_for_ready=True)
            request = passwords_pb2.RequestPasswordResetRequest(email=email)
            await passwords_pb2_grpc.PasswordServiceStub(channel).RequestPasswordReset(request)
            child.kill()
            await child.wait()
            await server.start()
            let_claims_pass(database_url)
            await child.start()
            code = await server.code(email, seconds=90)
            reset = passwords_pb2.ResetPasswordRequest(email=email, code=code, new_password="another password 77")
            answer = await passwords_pb2_grpc.PasswordServiceStub(channel).ResetPassword(reset, wait_for_ready=True)
            assert answer.signed_out == 1
        assert len(server.codes(email)) == 1


def certificate(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for this machine, and a server's end of TLS with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.test")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file, key_file = directory / "mail.pem", directory / "mail.key"
    file.write_bytes(made.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file, key_file)
    return file, context


class TestSmtp:
    async def test_starttls_and_a_password(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file, context = certificate(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        async with mail_server(tls=context, user=("ada@host", "p:w/d")) as server:
            url = f"smtp://ada%40host:p%3Aw%2Fd@127.0.0.1:{server.port}?starttls"
            await SmtpMailer(url, SENDER).send(letter())
            assert [one["Subject"] for one in server.letters] == ["Hello"]
            assert server.sessions[0].ssl is not None
            with pytest.raises(Exception, match="535"):
                await SmtpMailer(url.replace("ada", "bob"), SENDER).send(letter())
            assert len(server.letters) == 1

    async def test_a_certificate_that_nobody_vouches_for_gets_no_password_and_no_letter(self, tmp_path: Path) -> None:
        _, context = certificate(tmp_path)
        async with mail_server(tls=context, user=("ada", "secret")) as server:
            with pytest.raises(Exception, match=r"(?i)certificate"):
                await SmtpMailer(f"smtp://ada:secret@127.0.0.1:{server.port}?starttls", SENDER).send(letter())
            assert server.letters == []

    async def test_no_letter_goes_in_the_clear_where_tls_was_asked_for(self, server: MailServer) -> None:
        with pytest.raises(Exception, match=r"(?i)starttls"):
            await SmtpMailer(f"{server.url}?starttls", SENDER).send(letter())
        assert server.letters == []

    @pytest.mark.parametrize("subject", ["a\r\nBcc: eve@example.com", "a\nX: y"])
    async def test_no_subject_adds_a_header(self, server: MailServer, subject: str) -> None:
        with pytest.raises(Refused):
            await SmtpMailer(server.url, SENDER).send(letter(subject=subject))
        assert server.attempts == 0

    @pytest.mark.parametrize(
        "to", ["ada@example.com\r\nBcc: eve@example.com", "ada@example.com>\r\nRCPT TO:<eve@example.com", "@", "ada@"]
    )
    async def test_no_address_is_more_than_one(self, server: MailServer, to: str) -> None:
        with pytest.raises(Refused):
            await SmtpMailer(server.url, SENDER).send(letter(to=to))
        assert server.attempts == 0

    async def test_a_text_is_only_a_text(self, server: MailServer) -> None:
        text = "Dear all,\r\n.\r\nRCPT TO:<eve@example.com>\r\n\r\n.\r\nIch grüße"
        await SmtpMailer(server.url, SENDER).send(letter(text=text))
        (received,), (envelope,) = server.letters, server.envelopes
        assert envelope.rcpt_tos == ["ada@example.com"]
        assert received.get_content().splitlines() == text.splitlines()
        assert not received.is_multipart()

    async def test_a_comma_in_an_address_makes_no_second_one(self, server: MailServer) -> None:
        await SmtpMailer(server.url, SENDER).send(letter(to="ada,eve@example.com"))
        assert server.envelopes[0].rcpt_tos == ['"ada,eve"@example.com']

    async def test_a_domain_of_another_script_is_written_as_mail_servers_know_it(self, server: MailServer) -> None:
        await SmtpMailer(server.url, SENDER).send(letter(to="ada@bücher.example"))
        assert server.envelopes[0].rcpt_tos == ["ada@xn--bcher-kva.example"]


class TestSettings:
    def config(self, **given: str) -> Config:
        return Config(database_url="postgresql://", **given)  # type: ignore[arg-type]

    def test_without_a_server_nothing_is_sent_and_the_log_only_where_it_was_asked_for(self) -> None:
        assert mailer_of(self.config()) is None
        assert isinstance(mailer_of(self.config(smtp_url="log:")), LogMailer)
        assert isinstance(mailer_of(self.config(smtp_url="smtps://a:b@mail.test", mail_from=SENDER)), SmtpMailer)

    @pytest.mark.parametrize("sender", ["", "nobody", "a@b\r\nBcc: eve@example.com", "a@"])
    def test_a_server_wants_a_sender(self, sender: str) -> None:
        with pytest.raises(ConfigError, match="SATCHEL_MAIL_FROM"):
            mailer_of(self.config(smtp_url="smtp://mail.test", mail_from=sender))

    @pytest.mark.parametrize("url", ["mail.test", "http://mail.test", "smtp://", "smtp://mail.test?tls", "smtp://:25"])
    def test_another_url_is_refused_without_repeating_it(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SATCHEL_DATABASE_URL", "postgresql://")
        monkeypatch.setenv("SATCHEL_SMTP_URL", url)
        with pytest.raises(ConfigError, match="SATCHEL_SMTP_URL") as raised:
            mailer_of(from_environment().model_copy(update={"mail_from": SENDER}))
        assert url not in str(raised.value).replace("smtp://host:port", "")

    async def test_the_log_has_the_code_where_a_developer_looks_for_it(self, db: Database, clock: Clock) -> None:
        one = await asked(db, clock)
        with capture_logs() as logs:
            await mails_of(db, clock, LogMailer()).carry_out()
        (line,) = [line for line in logs if "one_time_code" in line]
        assert (line["to"], line["log_level"]) == (one.email, "warning")
        assert line["one_time_code"] in line["text"]
