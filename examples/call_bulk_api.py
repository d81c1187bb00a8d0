"""Call an HTTP API that has a bulk endpoint, and send again only the items that it turned down.

    python examples/call_bulk_api.py

The API, a small server of this example's own, answers each item of a request by itself: 201 made,
422 wrong or 503 busy; two whole requests it answers with 500. The handler translates that into
results and errors, one for each item; ``Retry`` sends the 503s and 500s again, together with new
items, and everybody else has long had an answer. After every fifth request the API takes none for
a quarter of a second: 429 with the seconds to wait. The handler raises ``RateLimited``: then all
four slots wait, no attempt is counted, and one request goes first when the time is over.
"""

import json
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from time import monotonic
from typing import Any

import anyio
import httpx

from microbatch import Backoff, Batcher, ItemError, RateLimited, Retry, retry_after

PEOPLE = 1_000
BACKOFF = Backoff(initial=0.2)
SLOTS = 4
WINDOW, PAUSE = 5, 0.25  # so many requests, and then none for so many seconds
COUNTING = Lock()  # the API answers each connection in a thread of its own
REQUESTS: list[int] = []  # how many items each had that the API answered item by item
FAILED: list[int] = []  # and how many those had that it answered with 500
REFUSED: Counter[int] = Counter()  # requests that came too fast, by the pause that they came in
ATTEMPTS: Counter[int] = Counter()  # how often each person came


class Api(BaseHTTPRequestHandler):
    """Makes people; some it turns down at the first attempts, and some it never takes."""

    protocol_version = "HTTP/1.1"

    closed_until = 0.0

    def do_POST(self) -> None:
        """Answer a request, each item with a status of its own."""
        people = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with COUNTING:
            pause = Api.closed_until - monotonic()
            status, answers = self.answer(people) if pause <= 0 else (429, [])
            if status == 429:
                REFUSED[(len(REQUESTS) + len(FAILED)) // WINDOW] += 1
        body = json.dumps(answers).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", f"{pause:.3f}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, people: list[dict[str, int]]) -> tuple[int, list[dict[str, Any]]]:
        """Take a request, and close for a while after every fifth one."""
        failed = len(REQUESTS) + len(FAILED) in {4, 8}
        (FAILED if failed else REQUESTS).append(len(people))
        if (len(REQUESTS) + len(FAILED)) % WINDOW == 0:
            Api.closed_until = monotonic() + PAUSE
        return (500, []) if failed else (207, [self.make(one["number"]) for one in people])

    def make(self, number: int) -> dict[str, Any]:
        """Answer for one item."""
        ATTEMPTS[number] += 1
        if number % 250 == 9:
            return {"status": 422, "message": f"person {number} has no address"}
        if number % 100 == 50 and ATTEMPTS[number] <= 2:
            return {"status": 503, "message": "busy"}
        return {"status": 201, "id": f"person-{number}"}

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def result(answer: dict[str, Any]) -> str | ItemError:
    """Translate the API's answer for one item."""
    if answer["status"] == 201:
        return str(answer["id"])
    return ItemError(
        answer["message"],
        code=f"http_{answer['status']}",
        retryable=answer["status"] == 503,
    )


async def main() -> None:
    """Serve the API in a thread, send it everybody at once, and show what became of them."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        Thread(target=server.serve_forever).start()
        try:
            await send(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


async def send(url: str) -> None:
    """Send everybody, each by a call of its own."""
    made: dict[int, str] = {}
    failed: dict[int, ItemError] = {}

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def make(people: list[dict[str, int]]) -> list[str | ItemError]:
            response = await client.post("/people", json=people)
            if response.status_code == 429:  # nobody's failure: all wait, and these go first
                raise RateLimited(retry_after=retry_after(response.headers.get("Retry-After")))
            response.raise_for_status()  # the whole request failed: an error for all of them
            return [result(answer) for answer in response.json()]

        # A transport error or a 500 is retried by its type, an ItemError by what it says of itself.
        retry = Retry(on=(httpx.TransportError, httpx.HTTPStatusError), attempts=6, backoff=BACKOFF)
        async with Batcher(make, max_batch_size=40, max_concurrency=SLOTS, retry=retry) as batcher:

            async def one(number: int) -> None:
                try:
                    made[number] = await batcher.submit({"number": number})
                except ItemError as error:
                    failed[number] = error

            async with anyio.create_task_group() as tasks:
                for number in range(PEOPLE):
                    tasks.start_soon(one, number)

    print(f"{PEOPLE:,} people by {len(REQUESTS)} requests instead of {sum(REQUESTS):,}")
    for attempts, people in sorted(Counter(ATTEMPTS.values()).items()):
        print(f"  sent {attempts} times: {people}")
    print(f"answered with 500 and sent again: {len(FAILED)} requests")
    print(f"refused with 429: at most {max(REFUSED.values())} requests in a pause, {SLOTS} slots")
    print(f"made: {len(made)}, failed: {len(failed)}")
    for number, error in failed.items():
        print(f"  {number:>3}: {error.code}, {error}, sent {ATTEMPTS[number]} times")
    if any(name != f"person-{number}" for number, name in made.items()):
        sys.exit("somebody got another's answer")


if __name__ == "__main__":
    anyio.run(main)
