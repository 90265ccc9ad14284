"""Addresses nobody else uses: free ports, socket files short enough to bind, and questions over both."""

import asyncio
import hashlib
import os
import random
import socket
import stat
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

# Below where Linux (32768) and macOS (49152) take the ports of outgoing connections: none of those may borrow
# a service's port while the service restarts.
PORTS = range(20000, 32000)

# sun_path holds 108 bytes on Linux and 104 on macOS, the closing zero included.
LONGEST_SOCKET_PATH = 103


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Different ports that nothing listens on right now."""
    with ExitStack() as held:
        taken: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            if len(taken) == count:
                break
            listener = held.enter_context(socket.socket())
            with suppress(OSError):
                listener.bind((host, port))
                taken.append(port)
    return taken


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on right now."""
    return free_ports(1, host)[0]


def check_free(host: str, port: int) -> None:
    """Raises OSError when the address can't be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        # A connection of the previous run that lingers in TIME_WAIT is no obstacle.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()


def socket_directory(directory: Path, longest_name: str) -> Path:
    """`directory`, or a short one in the temporary directory when socket paths in it would be too long."""
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if len(os.fsencode(directory / longest_name)) <= LONGEST_SOCKET_PATH:
        return directory
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:12]
    ours = Path(tempfile.gettempdir(), f"satchel-{digest}")
    ours.mkdir(mode=0o700, exist_ok=True)
    found = ours.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OSError(f"{ours} belongs to somebody else")
    # One level down, where it may belong to another account of ours and nobody else can get in the way.
    short = ours / "sockets"
    short.mkdir(exist_ok=True)
    return short


async def http_get(target: Path | tuple[str, int], path: str, *, method: str = "GET") -> tuple[int, str]:
    """The status and body of an answer over TCP or a socket file; 0 and nothing if none comes within 2 s."""
    try:
        async with asyncio.timeout(2):
            answer = await _exchange(
                target, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
    except (OSError, TimeoutError):
        return 0, ""
    head, _, body = answer.partition("\r\n\r\n")
    words = head.split(maxsplit=2)
    return (int(words[1]), body) if len(words) > 1 and words[1].isdigit() else (0, "")


async def redis_ping(target: Path) -> bool:
    """Whether a Redis answers on the socket file."""
    try:
        async with asyncio.timeout(2):
            return await _exchange(target, "PING\r\nQUIT\r\n") == "+PONG\r\n+OK\r\n"
    except (OSError, TimeoutError):
        return False


async def _exchange(target: Path | tuple[str, int], request: str) -> str:
    if isinstance(target, Path):
        reader, writer = await asyncio.open_unix_connection(target)
    else:
        reader, writer = await asyncio.open_connection(*target)
    try:
        writer.write(request.encode())
        return (await reader.read()).decode(errors="replace")
    finally:
        writer.close()
