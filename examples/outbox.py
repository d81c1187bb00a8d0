"""The outbox pattern without an outbox table: events that leave exactly if the business transaction commits.

An application writes accounts in its own SQLite transactions and enqueues an event in each with
`enqueue_in`. A batcher delivers the events in bulk to an HTTP server, which is down at first and answers
503 for a while. Nothing is lost, and what was rolled back is never sent.

    python outbox.py
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sqlite3
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from microbatch import Backoff, Retry
from microbatch.durable import DurableBatcher

received: list[list[dict[str, Any]]] = []
refusals = 2


class Receiver(BaseHTTPRequestHandler):
    """A server that takes many events in one request, after some refusals."""

    def do_POST(self) -> None:
        """Take a batch, or say 503."""
        global refusals  # noqa: PLW0603
        events = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if refusals:
            refusals -= 1
            self.send_error(503)
            return
        received.append(events)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def sender(port: int) -> Any:
    """Make the handler: a plain function, so it runs in a worker thread."""

    def send(events: list[dict[str, Any]]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("POST", "/events", json.dumps(events))
            status = connection.getresponse().status
        finally:
            connection.close()
        if status >= 500:
            raise ConnectionError(f"the server answered {status}")

    return send


def transfer(outbox: DurableBatcher[dict[str, Any], None], path: Path, number: int) -> None:
    """Do the application's own work: account and event in one transaction."""
    bank = sqlite3.connect(path, isolation_level=None)
    bank.execute("PRAGMA synchronous = FULL")
    bank.execute("BEGIN IMMEDIATE")
    bank.execute("UPDATE accounts SET balance = balance - 1")
    outbox.enqueue_in(bank, {"transfer": number}, key=f"transfer-{number}")
    bank.execute("ROLLBACK" if number % 10 == 9 else "COMMIT")
    bank.close()


async def main() -> None:
    """Transfer while the server is down; then start it."""
    path = Path(tempfile.mkdtemp()) / "bank.db"
    bank = sqlite3.connect(path)
    bank.execute("CREATE TABLE accounts (balance INTEGER)")
    bank.execute("INSERT INTO accounts VALUES (1000)")
    bank.commit()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver, bind_and_activate=False)
    server.server_bind()
    retry = Retry(
        on=(ConnectionError, TimeoutError),
        attempts=1_000,
        backoff=Backoff(initial=0.05, maximum=0.2),
    )
    send = sender(server.server_port)
    outbox: DurableBatcher[dict[str, Any], None] = DurableBatcher(
        path, send, item_type=dict[str, Any], retry=retry, max_wait=0.05
    )
    async with outbox:
        for number in range(100):
            await asyncio.to_thread(transfer, outbox, path, number)
        await asyncio.sleep(0.2)
        stats = await outbox.stats()
        print("waiting while the server is down:", stats.depth)

        server.server_activate()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        while (await outbox.stats()).depth:  # noqa: ASYNC110 - the queue has no event for it
            await asyncio.sleep(0.05)

    events = sorted(event["transfer"] for batch in received for event in batch)
    print("balance:", bank.execute("SELECT balance FROM accounts").fetchone()[0])
    print("every committed event arrived:", events == [n for n in range(100) if n % 10 != 9])
    print("in far fewer requests than events:", len(received) < 45)
    server.shutdown()
    thread.join()
    server.server_close()
    bank.close()


if __name__ == "__main__":
    asyncio.run(main())
