"""Owns the command that uploads a file: `python -m clients.upload FILE`."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import httpx
from tqdm import tqdm

from clients.calls import FIRST_PATIENCE, TIMEOUT, Calls, Refused, Unreachable
from clients.media_types import guess
from clients.sending import SENDING, FileChanged, Sender, Sent, hashed

OK: Final = 0
REFUSED: Final = 1
WRONG_USE: Final = 2
NOT_SIGNED_IN: Final = 3
UNREACHABLE: Final = 4
INTERRUPTED: Final = 130

MAX_PARALLEL: Final = 32

_EPILOG: Final = """\
It prints the file's URL. Whatever ended it (Ctrl-C, a dead battery, a lost network): run the same command again, and
only what is missing is sent.

who you are:
  SATCHEL_TOKEN     an access token, or
  --email           and a password from SATCHEL_PASSWORD or typed in

exit codes:
  0  the file is there          3  not signed in
  1  the server refuses it      4  the server was away for too long; the same command goes on
  2  wrong use, no such file    130  Ctrl-C; the same command goes on
"""


class WrongUse(Exception):
    """The command can't be carried out as it was typed; the message is one sentence."""


class Bar:
    """How far it is, on a terminal: what is done, how fast, and how long it will still take."""

    def __init__(self, *, hidden: bool) -> None:
        self._hidden = hidden
        self.doing = ""
        self._bar: tqdm[None] | None = None
        self._total = 0
        self._done = 0

    def begin(self, doing: str, total: int, done: int = 0) -> None:
        """Puts another bar in place of the last one; what was done before says nothing of our speed."""
        self.close()
        self.doing, self._total, self._done = doing, total, done
        self._bar = tqdm(
            desc=doing,
            total=total,
            initial=done,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            dynamic_ncols=True,
            leave=False,
            disable=self._hidden or None,  # None: where standard error is not a terminal
        )

    def at(self, done: int) -> None:
        """Moves the bar, forward or back."""
        step, self._done = done - self._done, done
        if self._bar is not None:
            self._bar.update(step)

    def say(self, text: str) -> None:
        """Tells a person something beside the bar."""
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Takes it away."""
        if self._bar is not None:
            self._bar.close()

    @property
    def percent(self) -> int:
        """Of what is being done."""
        return 100 * self._done // self._total if self._total else 0


class Command:
    """One run of the command."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        self._bar = Bar(hidden=asked.json)

    def run(self) -> int:
        """The exit code; what there is to say is said."""
        try:
            return self._succeeded(asyncio.run(self._upload()))
        except (WrongUse, FileChanged) as error:
            return self._failed(WRONG_USE, "WRONG_USE", str(error))
        except OSError as error:
            return self._failed(WRONG_USE, "WRONG_USE", f"{self._asked.file}: {(error.strerror or str(error)).lower()}")
        except Refused as refusal:
            code = NOT_SIGNED_IN if refusal.status == 401 else REFUSED
            return self._failed(code, refusal.code, refusal.message)
        except Unreachable as error:
            return self._failed(UNREACHABLE, "UNREACHABLE", f"{error}{self._hint()}")
        except KeyboardInterrupt:
            return self._failed(INTERRUPTED, "INTERRUPTED", f"Stopped{self._hint()}")

    async def _upload(self) -> Sent:
        asked = self._asked
        file = await hashed(_readable(asked.file), asked.type or _guessed(asked.file), self._bar)
        token, password = _identity(asked)
        limits = httpx.Limits(max_connections=asked.parallel + 1)
        async with httpx.AsyncClient(base_url=asked.url, timeout=TIMEOUT, limits=limits) as http:
            calls = Calls(http, token=token, patience=asked.patience, say=self._bar.say)
            try:
                if asked.email:
                    await calls.sign_in(asked.email, password)
                return await Sender(calls, self._bar, parallel=asked.parallel, stream=asked.stream).send(file)
            except Refused as refusal:
                if "mime_type" in refusal.violations:
                    raise await _about_types(calls, file.mime_type, refusal) from None
                raise
            finally:
                self._bar.close()
                await calls.sign_out()

    def _hint(self) -> str:
        if self._bar.doing != SENDING:
            return ""
        return f" at {self._bar.percent} %; what has arrived is kept: run the same command again to send the rest"

    def _succeeded(self, sent: Sent) -> int:
        if sent.already_there and not self._asked.json:
            print("The file was there already; nothing was sent.", file=sys.stderr)
        print(json.dumps(asdict(sent)) if self._asked.json else sent.file_url)
        return OK

    def _failed(self, code: int, name: str, message: str) -> int:
        self._bar.close()
        if self._asked.json:
            print(json.dumps({"error": {"code": name, "message": message}}))
        else:
            print(message if message.endswith((".", "?")) else f"{message}.", file=sys.stderr)
        return code


def _readable(path: Path) -> Path:
    if not path.is_file():
        raise WrongUse(f"{path}: " + ("is not a file" if path.exists() else "there is no such file"))
    if not path.stat().st_size:
        raise WrongUse(f"{path}: is empty")
    return path


def _guessed(path: Path) -> str:
    if found := guess(path):
        return found
    raise WrongUse(f"{path}: its name does not tell its type; name it, such as --type application/pdf")


def _identity(asked: argparse.Namespace) -> tuple[str, str]:
    """A token, or a password for --email."""
    if asked.email:
        password = os.environ.get("SATCHEL_PASSWORD", "")
        if not password and sys.stdin.isatty():
            password = getpass.getpass(f"Password of {asked.email}: ")
        if not password:
            raise WrongUse("--email needs a password: set SATCHEL_PASSWORD, or run it in a terminal")
        return "", password
    token = os.environ.get("SATCHEL_TOKEN", "").strip()
    if not token:
        raise WrongUse("Nobody is signed in: set SATCHEL_TOKEN to an access token, or say --email")
    if not (token.isascii() and token.isprintable()):
        raise WrongUse("SATCHEL_TOKEN is not an access token")
    return token, ""


async def _about_types(calls: Calls, mime_type: str, refusal: Refused) -> Refused:
    """The refusal of a type, with those that would do."""
    if refusal.violations["mime_type"] == "MISMATCH":
        message = f"The file does not hold what it is sent as, {mime_type}; name its type with --type"
    else:
        limits = (await calls.call("GET", "/api/v1/uploads/limits")).json()
        taken = ", ".join(one for group in limits["types"] for one in group["mime_types"])
        message = f"The server takes no files of type {mime_type}; it takes {taken}"
    return Refused(refusal.status, refusal.code, message, refusal.violations)


def _url(text: str) -> str:
    url = httpx.URL(text)
    if url.scheme not in ("http", "https") or not url.host:
        raise argparse.ArgumentTypeError(f"{text!r} is not like https://satchel.example.com")
    return text.rstrip("/")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PARALLEL:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to {MAX_PARALLEL}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """What may be typed."""
    found = argparse.ArgumentParser(
        prog="python -m clients.upload",
        description="Uploads a file to a Satchel.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("file", metavar="FILE", type=Path)
    url = f"http://localhost:{os.environ.get('SATCHEL_PORT') or 8080}"
    found.add_argument("--url", type=_url, default=url, help="where the server is (%(default)s)")
    found.add_argument("--email", default="", help="sign in with this account")
    found.add_argument("--type", default="", metavar="TYPE", help="media type; without it, guessed from the name")
    found.add_argument("--parallel", type=_count, default=4, metavar="N", help="chunks sent at a time (%(default)s)")
    found.add_argument("--stream", action="store_true", help="send it in one go instead of in chunks")
    found.add_argument(
        "--patience",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help=f"how long to try again while the server is away (%(default)g; {FIRST_PATIENCE:g} if it never answered)",
    )
    found.add_argument("--json", action="store_true", help="print one JSON object, for scripts, and no progress")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    return Command(parser().parse_args(arguments)).run()


if __name__ == "__main__":
    sys.exit(main())
