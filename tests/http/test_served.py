"""Real servers and real sockets: what a client sees, and what slow and idle ones do to others."""

from __future__ import annotations

import contextlib
import gzip
import socket
from urllib.parse import urlsplit

import httpx
import pytest
from served_support import SERVERS, many_files, request, served

pytestmark = pytest.mark.slow

ANN = {"authorization": "Bearer ann"}


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


@pytest.mark.parametrize("server", SERVERS)
def test_an_api_behind_a_server(server: str) -> None:
    """From the first request to the last; slow and idle connections beside it stop nobody."""
    with many_files(), served(server) as (url, process):
        with (
            httpx.Client(base_url=url, headers=ANN, timeout=60) as client,
            contextlib.ExitStack() as stack,
        ):
            made = client.post("/users", json={"name": "a"})
            assert (made.status_code, made.headers["location"]) == (201, "/users/1")
            assert made.headers["x-content-type-options"] == "nosniff"
            batch = client.post(
                "/users/batch", json={"items": [{"name": str(one)} for one in range(500)] + [{}]}
            )
            assert (batch.status_code, batch.json()["summary"]["succeeded"]) == (207, 500)
            body = gzip.compress(b'{"name": "packed"}')
            headers = {"content-encoding": "gzip", "content-type": "application/json"}
            assert client.post("/users", content=body, headers=headers).status_code == 201
            head = client.head("/users/1")
            assert (head.status_code, head.content) == (200, b"")
            assert client.delete("/users/1").status_code == 204
            large = stack.enter_context(connected(url))
            large.sendall(request(content_length=1_000_001))
            assert b" 413 " in large.recv(4_096)
            assert client.options("/users").headers["allow"] == "POST"

            idle = [
                stack.enter_context(connected(url))
                for _ in range(900 if server == "uvicorn" else 200)
            ]
            slow = [stack.enter_context(connected(url)) for _ in range(100)]
            for one in slow:
                one.sendall(request(b'{"na', content_length=13))
            assert client.post("/users", json={"name": "beside"}).status_code == 201
            idle[0].sendall(request(b'{"name":"id"}', content_length=13))
            assert b" 201 " in idle[0].recv(4_096)
            slow[0].sendall(b'me":"sl"}')
            assert b" 201 " in slow[0].recv(4_096)

            # One that says less than it sends: the rest is another request, and a bad one.
            liar = stack.enter_context(connected(url))
            liar.sendall(request(b'{"name":"xy"}zzzzzzzz\r\n\r\n', content_length=13))
            status = liar.recv(4_096)[9:12]
            assert status in {b"201", b"400"}
        process.terminate()
        assert process.wait(60) is not None


def test_a_request_under_way_is_answered_when_its_server_stops() -> None:
    """What was let in gets home."""
    with served("uvicorn") as (url, process):
        parts = connected(url)
        with parts:
            parts.sendall(request(b'{"na', content_length=13))
            assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200
            process.terminate()
            parts.sendall(b'me":"la"}')
            answer = parts.recv(4_096)
            assert b" 201 " in answer or b" 503 " in answer
        assert process.wait(60) is not None
