"""One page of metrics for the whole stack: what every part tells of itself, each line with whose it is."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from deploy.parts import Child

PATH = "/metrics"
ENVOY_PATH = "/stats/prometheus?usedonly"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ANSWER_WITHIN = 5.0  # seconds for a part to tell of itself: one that hangs must not hide the others
ASKED_WITHIN = 5.0  # seconds for a caller to say what it wants


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a part told of itself."""

    service: str
    # Which of the service's processes.
    instance: str
    up: bool
    # In Prometheus' text format; empty for a part that tells nothing.
    page: str = ""


@dataclass
class _Family:
    # HELP and TYPE, as the first page has them: each may stand there once.
    comments: dict[str, str] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)


def merged(told: Iterable[Told]) -> str:
    """The pages as one: each metric described once, each of its lines with the labels service and instance.

    By lines rather than through a parser: the pages come from libraries that write them well, and there are thousands.
    """
    families: dict[str, _Family] = {
        "up": _Family({"HELP": "# HELP up 1 while the part runs and tells of itself.", "TYPE": "# TYPE up gauge"})
    }
    for one in told:
        labels = f'service="{one.service}",instance="{one.instance}"'
        families["up"].samples.append(f"up{{{labels}}} {int(one.up)}")
        name = ""
        for line in one.page.splitlines():
            if line.startswith("#"):
                words = line.split(maxsplit=3)
                if len(words) < 3 or words[1] not in ("HELP", "TYPE"):
                    continue
                name = words[2]
                families.setdefault(name, _Family()).comments.setdefault(words[1], line)
            elif line:
                families.setdefault(name, _Family()).samples.append(_labelled(line, labels))
    lines = [line for one in families.values() for line in (*one.comments.values(), *one.samples)]
    return "\n".join([*lines, ""])


def _labelled(sample: str, labels: str) -> str:
    bare, brace, rest = sample.partition("{")
    if brace and " " not in bare:
        return f"{bare}{{{labels}{'' if rest.startswith('}') else ','}{rest}"
    bare, _, value = sample.partition(" ")
    return f"{bare}{{{labels}}} {value}"


async def gathered(children: Sequence[Child], admin: Path) -> str:
    """The page of a running stack; `admin` is the socket file of Envoy's."""
    # Here, because it takes its time to load, and nobody may ever ask.
    import httpx

    async def ask(client: httpx.AsyncClient, url: str) -> str:
        try:
            answer = await client.get(url)
        except httpx.HTTPError:
            return ""
        return answer.text if answer.status_code == 200 else ""

    async def tell(child: Child) -> Told:
        name = child.part.name
        page, tells = "", True
        if name == "envoy":
            page = await ask(envoy, f"http://envoy{ENVOY_PATH}")
        elif child.part.metrics:
            page = await ask(processes, f"http://{child.part.metrics}{PATH}")
        else:
            tells = False
        up = child.running and (bool(page) or not tells)
        return Told(service=name.partition("-")[0], instance=name, up=up, page=page)

    async with (
        httpx.AsyncClient(timeout=ANSWER_WITHIN, trust_env=False) as processes,
        httpx.AsyncClient(
            timeout=ANSWER_WITHIN, transport=httpx.AsyncHTTPTransport(uds=str(admin)), trust_env=False
        ) as envoy,
    ):
        told = await asyncio.gather(*map(tell, children))
    # Thousands of lines: not while signals and parts that end wait for this loop.
    return await asyncio.to_thread(merged, told)


@asynccontextmanager
async def served(page: Callable[[], Awaitable[str]], port: int) -> AsyncIterator[str]:
    """Serves the page on loopback for as long as the block runs; yields its URL. Port 0: a free one.

    Raises OSError when the port is taken.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # EOFError: whoever only looks whether somebody listens here.
            with suppress(OSError, TimeoutError, asyncio.LimitOverrunError, EOFError, ValueError):
                async with asyncio.timeout(ASKED_WITHIN):
                    head = await reader.readuntil(b"\r\n\r\n")
                verb, path = head.decode("latin-1").split(maxsplit=2)[:2]
                if path.partition("?")[0] == PATH and verb in ("GET", "HEAD"):
                    writer.write(_response("200 OK", await page(), bare=verb == "HEAD"))
                else:
                    writer.write(_response("404 Not Found", f"There is only {PATH} here.\n"))
                await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{PATH}"
    finally:
        server.close()


def _response(status: str, text: str, *, bare: bool = False) -> bytes:
    body = text.encode()
    headers: Mapping[str, object] = {
        "content-type": CONTENT_TYPE,
        "content-length": len(body),
        "cache-control": "no-store",
        "connection": "close",
    }
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + (b"" if bare else body)
