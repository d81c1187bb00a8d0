"""``microbatch ui``: who passes its gate, what it prints, and that it ends soon whatever is open."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing
from typing import Any

import httpx
import pytest
from cli_support import fill
from starlette.responses import PlainTextResponse

from microbatch.cli import _page_server
from microbatch.cli._gate import Gate

LOCAL = "http://127.0.0.1:4321"


def gate(*, host: str = "127.0.0.1", remote: bool = False) -> Gate:
    return Gate(PlainTextResponse("behind"), host, 4321, remote=remote)


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=LOCAL)


@pytest.mark.anyio
async def test_the_token_is_exchanged_once_for_a_cookie():
    """Who has the address gets in; who reads it later in a log or a history does not."""
    opened = gate()
    token = opened.address.partition("?")[2]
    async with client_of(opened) as browser, client_of(opened) as other:
        assert (await browser.get("/")).status_code == 401
        assert (await browser.get("/?token=nonsense")).status_code == 401
        assert (await browser.head(f"/?{token}")).status_code == 401
        assert (await browser.post(f"/?{token}")).status_code == 401
        answer = await browser.get(f"/?{token}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert re.fullmatch(
            r"microbatch-ui-4321=[\w-]{43}; HttpOnly; Path=/; SameSite=strict", cookie
        )
        assert (await browser.get("/any/path")).text == "behind"
        assert (await browser.get(f"/?{token}")).text == "behind"  # the cookie is there
        assert (await other.get(f"/?{token}")).status_code == 401
        assert (await other.get("/", headers={"cookie": "microbatch-ui-4321=x"})).status_code == 401


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sent", "local", "remote"),
    [
        ("127.0.0.1:4321", 401, 401),
        ("LOCALHOST:4321", 401, 401),
        ("[::1]:4321", 401, 401),
        ("127.0.0.1", 421, 421),
        ("127.0.0.1:4322", 421, 421),
        ("evil.example:4321", 421, 421),
        ("", 421, 421),
        ("192.0.2.7:4321", 421, 401),
        (f"{socket.gethostname()}:4321", 421, 401),
    ],
)
async def test_other_names_are_refused_before_anything_else(sent, local, remote):
    """A page of another site that points its own name at us is told that this is another server."""
    for app, status in ((gate(), local), (gate(host="0.0.0.0", remote=True), remote)):
        async with client_of(app) as browser:
            token = app.address.partition("?")[2]
            answer = await browser.get(f"/?{token[:-1]}", headers={"host": sent})
            assert answer.status_code == status


def test_the_address_is_one_that_a_browser_takes():
    """An IPv6 address in brackets; this machine's name where it listens everywhere."""
    assert Gate(None, "::1", 80, remote=False).address.startswith("http://[::1]:80/?token=")
    here = f"http://{socket.gethostname()}:80/?token="
    assert Gate(None, "0.0.0.0", 80, remote=True).address.startswith(here)


def test_what_it_cannot_serve_is_an_error_of_one_line(microbatch, path, tmp_path):
    """A missing file, a host that others reach, a port that is taken."""
    assert microbatch("ui", path).code == 3
    fill(path, [1])
    ended = microbatch("ui", path, "--host", "0.0.0.0")
    assert ended.code == 2
    assert "add --allow-remote" in ended.err
    for host in ("no such host", "a" * 64, "a..b", "\udcff"):
        ended = microbatch("ui", path, "--host", host)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert microbatch("ui", path, "--port", "70000").code == 2
    assert microbatch("ui", f"{tmp_path}/a\0b").code == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = microbatch("ui", path, "--port", taken.getsockname()[1])
    assert ended.code == 2
    assert "cannot listen at 127.0.0.1" in ended.err


def test_what_hangs_at_the_end_is_cut_off(monkeypatch, capsys):
    """A disk that does not answer keeps nobody's terminal."""
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    _page_server._leave()
    assert codes == [0]
    assert "cut off" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_first_and_ends_soon_whatever_is_open(path, number):
    """A followed page, half a request, and a form that never comes are open; nothing of it is an error."""
    fill(path, [1, 2], queue="orders")
    command = [sys.executable, "-m", "microbatch", "ui", str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as served:
        assert served.stdout is not None
        assert served.stderr is not None
        address = served.stdout.readline().rstrip("\n")
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=[\w-]{43}", address)
        assert found is not None
        port = int(found[1])
        opened = contextlib.ExitStack()
        first, followed = (
            opened.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)))
            for _ in range(2)
        )
        first.request("GET", address.partition(str(port))[2])
        answer = opened.enter_context(closing(first.getresponse()))
        cookie = str(answer.headers["set-cookie"]).partition(";")[0]
        followed.request("GET", "/q/orders?live=1", headers={"cookie": cookie})
        answer = opened.enter_context(closing(followed.getresponse()))
        assert answer.readline() == b"data: <!doctype html>\n"
        half, form = (
            opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(2)
        )
        half.send(b"GET / HTTP/1.1\r\nHost: 127")
        head = f"Host: 127.0.0.1:{port}\r\nCookie: {cookie}\r\nContent-Length: 9"
        kind = "Content-Type: application/x-www-form-urlencoded"
        form.send(f"POST /q/orders/act HTTP/1.1\r\n{head}\r\n{kind}\r\n\r\ndo".encode())
        served.send_signal(number)
        assert served.wait(60) == 0  # 1.2 s on a quiet machine; this only fails if it hangs
        assert served.stdout.read() == ""
        errors = served.stderr.read()
        assert "Traceback" not in errors
        opened.close()


@pytest.mark.slow
def test_open_shows_the_page_in_a_browser(path, microbatch, monkeypatch):
    """It is asked for as soon as the address is known, and answered once the server runs."""
    fill(path, [1], queue="orders")
    shown: list[tuple[str, int]] = []

    def browse(address: str) -> None:
        try:
            shown.append((address, httpx.get(address, timeout=60).status_code))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("microbatch.cli._ui.webbrowser.open", browse)
    monkeypatch.setattr(_page_server, "END", 600.0)  # it would end this process
    logger = logging.getLogger("uvicorn.error")
    level, before = logger.level, signal.getsignal(signal.SIGTERM)
    try:
        ended = microbatch("ui", path, "--open")
    finally:
        logger.setLevel(level)
    assert (ended.code, ended.err) == (0, "")
    assert shown == [(ended.out.strip(), 303)]
    assert signal.getsignal(signal.SIGTERM) is before
