"""An API in a process of its own, behind a real server: what the slow tests start."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from http_support import Users, api_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVERS = {
    "uvicorn": [
        "uvicorn",
        "{app}",
        "--fd",
        "{fd}",
        "--no-access-log",
        "--timeout-keep-alive",
        "60",
    ],
    "hypercorn": ["hypercorn", "{app}", "--bind", "fd://{fd}", "--keep-alive", "60"],
    "hypercorn on trio": [
        "hypercorn",
        "{app}",
        "--bind",
        "fd://{fd}",
        "-k",
        "trio",
        "--keep-alive",
        "60",
    ],
}

app = api_of(Users(), max_body_bytes=1_000_000, body_timeout=60)


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """Let this process, and those that it starts, have as many connections as a test opens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8_192, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def served(
    server: str, app: str = "served_support:app", **environ: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a server on a socket of ours, so that no two take one port; end it by its id."""
    with socket.create_server(("127.0.0.1", 0), backlog=2_000) as listener:
        fd, port = listener.fileno(), listener.getsockname()[1]
        command = [part.format(fd=fd, app=app) for part in SERVERS[server]]
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            pass_fds=[fd],
            env=os.environ | environ | {"PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url, process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 180
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < until, "the server does not come up"
        time.sleep(0.05)


def request(body: bytes = b"", **headers: Any) -> bytes:
    """Return a POST of a user as it goes over the wire, or its beginning."""
    lines = ["POST /users HTTP/1.1", "host: test", "authorization: Bearer ann"]
    lines += [
        "content-type: application/json",
        *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
