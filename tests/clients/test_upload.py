"""`python -m clients.upload`, run as people run it, through a real edge."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.parts import ROOT, running
from deploy.sockets import free_ports
from tests.conftest import Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import PASSWORD, Phone
from tests.relay import Relay, answer

MIB = 1024 * 1024
MP4 = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom"
CHUNKS = 10
SIZE = 9 * MIB + 12345


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A film that nobody has uploaded before."""
    file = tmp_path / "my film.mp4"
    file.write_bytes(MP4 + os.urandom(SIZE - len(MP4)))
    return file


@pytest.fixture
async def relay(edge: Edge) -> AsyncIterator[Relay]:
    """The edge behind a relay."""
    async with Relay("127.0.0.1", edge.port) as started:
        yield started


async def started(url: str, phone: Phone, file: Path, *arguments: str, **environment: str) -> Process:
    """The command on its way; an empty `url` leaves it to find the server."""
    known = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "SATCHEL_TOKEN": phone.access_token,
        **environment,
    }
    command = [sys.executable, "-m", "clients.upload", str(file), *(("--url", url) if url else ()), *arguments]
    return await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=known, stdin=PIPE, stdout=PIPE, stderr=PIPE, preexec_fn=_heed_ctrl_c
    )


def _heed_ctrl_c() -> None:
    """What a shell starts in the background, as these tests may be, passes on that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def ended(process: Process) -> tuple[int | None, str, str]:
    """Exit code, standard output and standard error of the command; it must not leave a stack trace."""
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    assert b"Traceback" not in err, err.decode()
    return process.returncode, out.decode(), err.decode()


async def uploaded(url: str, phone: Phone, file: Path, *arguments: str, **environment: str) -> tuple[Any, ...]:
    return await ended(await started(url, phone, file, *arguments, **environment))


async def until(found: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await found():
            await asyncio.sleep(0.02)


async def holding(relay: Relay, process: Process) -> None:
    """Returns when the command is in the middle of its file."""

    async def so() -> bool:
        assert process.returncode is None, "it ended without sending anything"
        return relay.held.is_set()

    await until(so)


async def content(phone: Phone, file_url: str) -> bytes:
    """What the URL that the command printed gives its owner."""
    answer = await phone.call("GET", httpx.URL(file_url).path)
    assert answer.status_code == 200, answer.text
    return answer.content


async def status_of(phone: Phone, relay: Relay) -> httpx.Response:
    """The status of the upload that the relay has seen."""
    line = next(line for line, _ in relay.calls if line.endswith("/status HTTP/1.1"))
    return await phone.call("GET", line.split()[1])


async def test_a_file_is_uploaded_and_its_url_printed(relay: Relay, phone: Phone, film: Path) -> None:
    code, out, err = await uploaded(relay.url, phone, film)
    assert (code, err) == (0, "")
    assert await content(phone, out.strip()) == film.read_bytes()
    assert relay.count("/chunk/") == CHUNKS


async def test_scripts_get_one_json_object(edge: Edge, phone: Phone, film: Path) -> None:
    code, out, err = await uploaded(edge.url, phone, film, "--json")
    told = json.loads(out)
    assert (code, err, told["file_size"], told["already_there"]) == (0, "", SIZE, False)
    assert await content(phone, told["file_url"]) == film.read_bytes()


async def test_an_account_signs_in_and_out_again(edge: Edge, phone: Phone, film: Path) -> None:
    async with Relay("127.0.0.1", edge.port) as relay:
        code, out, err = await uploaded(relay.url, phone, film, "--email", phone.email, SATCHEL_PASSWORD=PASSWORD)
        assert (code, err) == (0, "")
        assert await content(phone, out.strip()) == film.read_bytes()
        token = next(headers["authorization"] for line, headers in relay.calls if "/finalize" in line)
        assert relay.count("/v1/auth/signout") == 1
    assert token != phone.headers["authorization"]


async def test_after_ctrl_c_only_what_is_missing_is_sent(relay: Relay, edge: Edge, phone: Phone, film: Path) -> None:
    relay.allow(3 * MIB)
    process = await started(relay.url, phone, film)
    await holding(relay, process)

    async def three_are_stored() -> bool:
        return len((await status_of(phone, relay)).json()["uploaded_chunks"]) == 3

    await until(three_are_stored)
    process.send_signal(signal.SIGINT)
    code, out, err = await ended(process)
    assert (code, out) == (130, "")
    assert "run the same command again" in err

    async with Relay("127.0.0.1", edge.port) as again:
        code, out, err = await uploaded(again.url, phone, film)
        assert (code, err) == (0, "")
        assert again.count("/chunk/") == CHUNKS - 3
    assert await content(phone, out.strip()) == film.read_bytes()


async def test_ctrl_c_ends_a_stream_and_the_next_run_goes_on_behind_it(
    relay: Relay, edge: Edge, phone: Phone, film: Path
) -> None:
    relay.allow(2 * MIB + MIB // 2)
    process = await started(relay.url, phone, film, "--stream")
    await holding(relay, process)

    async def two_are_stored() -> bool:
        return (await status_of(phone, relay)).headers["upload-offset"] == str(2 * MIB)

    await until(two_are_stored)
    process.send_signal(signal.SIGINT)
    assert (await ended(process))[0] == 130

    async with Relay("127.0.0.1", edge.port) as again:
        code, out, err = await uploaded(again.url, phone, film, "--stream")
        assert (code, err) == (0, "")
        (headers,) = [headers for line, headers in again.calls if line.startswith("PUT ")]
        assert headers["upload-offset"] == str(2 * MIB)
        assert again.count("/chunk/") == 0
    assert await content(phone, out.strip()) == film.read_bytes()


async def test_a_cut_stream_goes_on_by_itself(relay: Relay, phone: Phone, film: Path) -> None:
    relay.allow(4 * MIB + MIB // 2)
    process = await started(relay.url, phone, film, "--stream")
    await holding(relay, process)

    async def four_are_stored() -> bool:
        return (await status_of(phone, relay)).headers["upload-offset"] == str(4 * MIB)

    await until(four_are_stored)
    relay.release()
    relay.hang_up()
    code, out, _ = await ended(process)
    assert code == 0
    offsets = [headers["upload-offset"] for line, headers in relay.calls if line.startswith("PUT ")]
    assert offsets == ["0", str(4 * MIB)]
    assert await content(phone, out.strip()) == film.read_bytes()


async def test_a_file_arrives_though_the_edge_is_killed_meanwhile(
    database_url: str, redis_url: str, tmp_path: Path, film: Path
) -> None:
    config = config_for(tmp_path / "home", database_url=database_url, redis_url=redis_url)
    async with (
        running(service_part("all", config, tmp_path)),
        envoy_for(config, tmp_path / "edge") as edge,
        Relay("127.0.0.1", edge.port) as relay,
    ):
        await until_healthy(edge)
        phone = await edge.phone()
        relay.allow(3 * MIB)
        process = await started(relay.url, phone, film)
        await holding(relay, process)
        edge.envoy.kill()
        await edge.envoy.wait()
        relay.release()

        async def it_has_tried_again() -> bool:
            return relay.refused > 0

        await until(it_has_tried_again)
        await edge.envoy.start()
        await edge.envoy.until_ready()
        code, out, _ = await ended(process)
        assert code == 0
        await until_healthy(edge)
        assert await content(phone, out.strip()) == film.read_bytes()


async def test_a_type_that_is_not_taken_is_refused_in_one_sentence(relay: Relay, phone: Phone, film: Path) -> None:
    code, out, err = await uploaded(relay.url, phone, film, "--type", "application/zip")
    assert (code, out) == (1, "")
    assert err.startswith("The server takes no files of type application/zip; it takes image/jpeg, ")
    assert err.count("\n") == 1
    assert relay.count("/chunk/") == 0


async def test_a_file_that_is_not_of_its_type_is_refused(edge: Edge, phone: Phone, film: Path) -> None:
    code, out, err = await uploaded(edge.url, phone, film, "--type", "audio/ogg", "--json")
    assert (code, err) == (1, "")
    assert json.loads(out)["error"]["code"] == "SYNC_001"
    assert "does not hold what it is sent as" in json.loads(out)["error"]["message"]


async def test_what_is_there_already_is_not_sent(edge: Edge, phone: Phone, film: Path) -> None:
    first = json.loads((await uploaded(edge.url, phone, film, "--json"))[1])
    renamed = film.rename(film.with_name("other.mp4"))
    async with Relay("127.0.0.1", edge.port) as relay:
        code, out, _ = await uploaded(relay.url, phone, renamed, "--json")
        assert code == 0
        assert [line.split()[1] for line, _ in relay.calls] == ["/api/v1/uploads/init"]
    assert json.loads(out) == {**first, "already_there": True}


async def test_without_an_address_it_goes_to_the_port_of_this_machine(edge: Edge, phone: Phone, film: Path) -> None:
    code, out, err = await uploaded("", phone, film, SATCHEL_PORT=str(edge.port))
    assert (code, err) == (0, "")
    assert await content(phone, out.strip()) == film.read_bytes()


async def test_two_at_once_make_one_file(edge: Edge, phone: Phone, film: Path) -> None:
    runs = await asyncio.gather(*(uploaded(edge.url, phone, film) for _ in range(2)))
    assert [code for code, _, _ in runs] == [0, 0]
    (file_url,) = {out for _, out, _ in runs}
    assert await content(phone, file_url.strip()) == film.read_bytes()
    assert len((await phone.call("GET", "/api/v1/files")).json()["files"]) == 1


async def test_a_limited_call_waits_as_long_as_it_is_told(relay: Relay, phone: Phone, film: Path) -> None:
    relay.instead.append(("/chunk/", answer("429 Too Many Requests", "{}", "retry-after: 1")))
    code, out, err = await uploaded(relay.url, phone, film)
    assert code == 0
    assert err == "Waiting 1 s: the server takes no more calls at the moment.\n"
    assert await content(phone, out.strip()) == film.read_bytes()
    assert relay.count("/chunk/") == CHUNKS + 1


@pytest.mark.parametrize("path", ["/init", "/status", "/chunk/", "/finalize"])
async def test_a_server_that_fails_once_is_asked_again(relay: Relay, phone: Phone, film: Path, path: str) -> None:
    relay.instead.append((path, answer("503 Service Unavailable", "no JSON")))
    code, out, _ = await uploaded(relay.url, phone, film)
    assert code == 0
    assert await content(phone, out.strip()) == film.read_bytes()


async def test_a_chunk_that_came_too_slowly_is_sent_again(relay: Relay, phone: Phone, film: Path) -> None:
    relay.instead.append(("/chunk/", answer("408 Request Timeout", "{}", "retry-after: 1")))
    code, out, err = await uploaded(relay.url, phone, film)
    assert code == 0
    assert "--parallel 1" in err
    assert await content(phone, out.strip()) == film.read_bytes()


async def test_a_token_that_expires_on_the_way_is_refreshed(relay: Relay, phone: Phone, film: Path) -> None:
    body = json.dumps({"error": {"code": "AUTH_002", "message": "The token has expired.", "details": []}})
    relay.instead.append(("/chunk/", answer("401 Unauthorized", body)))
    code, out, err = await uploaded(relay.url, phone, film, "--email", phone.email, SATCHEL_PASSWORD=PASSWORD)
    assert (code, err) == (0, "")
    assert relay.count("/v1/auth/refresh") == 1
    assert await content(phone, out.strip()) == film.read_bytes()


async def test_an_upload_that_ended_meanwhile_is_begun_anew(relay: Relay, phone: Phone, film: Path) -> None:
    relay.allow(2 * MIB)
    process = await started(relay.url, phone, film)
    await holding(relay, process)
    line = next(line for line, _ in relay.calls if line.endswith("/status HTTP/1.1"))
    gone = line.split()[1].removesuffix("/status")
    assert (await phone.call("DELETE", gone)).status_code == 200
    relay.release()
    code, out, _ = await ended(process)
    assert code == 0
    assert relay.count("/init") == 2
    assert gone.rpartition("/")[2] not in out
    assert await content(phone, out.strip()) == film.read_bytes()


async def test_a_wrong_password_a_bad_token_and_no_server_have_exit_codes(edge: Edge, phone: Phone, film: Path) -> None:
    wrong = await uploaded(edge.url, phone, film, "--email", phone.email, SATCHEL_PASSWORD="not the password")
    assert wrong == (3, "", "Email or password is incorrect.\n")
    assert (await uploaded(edge.url, phone, film, SATCHEL_TOKEN="x"))[0] == 3
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    code, out, err = await uploaded(nobody, phone, film, "--patience", "0.5")
    assert (code, out) == (4, "")
    assert "cannot be reached" in err


@pytest.mark.parametrize(
    ("name", "told"),
    [("nothing.mp4", "there is no such file"), ("empty.mp4", "is empty"), ("data.nothing", "name it, such as --type")],
)
async def test_what_cannot_be_sent_is_said_at_once(phone: Phone, tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "data.nothing").write_bytes(b"data")
    code, out, err = await uploaded("http://127.0.0.1:1", phone, tmp_path / name)
    assert (code, out) == (2, "")
    assert told in err
