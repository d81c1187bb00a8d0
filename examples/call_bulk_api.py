"""Call an HTTP API that has a bulk endpoint, and send again only the items that it turned down.

    python examples/call_bulk_api.py

The API, a small server of this example's own, answers each item of a request by itself: 201 made,
422 wrong, 429 too fast (with the seconds to wait) or 503 busy; two whole requests it answers with
500. The handler translates that into results and errors, one for each item; ``Retry``
sends the 429s, 503s and 500s again, together with new items, and everybody else has long had an
answer. ``rate_limited`` keeps to the rate that the API allows, second attempts included.
"""

import json
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import anyio
import httpx

from microbatch import Backoff, Batcher, ItemError, Retry
from microbatch.layers import rate_limited

PEOPLE = 1_000
BACKOFF = Backoff(initial=0.2)
RATE = 20  # requests that the API allows in a second
COUNTING = Lock()  # the API answers each connection in a thread of its own
REQUESTS: list[int] = []  # how many items each had that the API answered item by item
FAILED: list[int] = []  # and how many those had that it answered with 500
TIMES: list[float] = []  # when each request set out
ATTEMPTS: Counter[int] = Counter()  # how often each person came


class Api(BaseHTTPRequestHandler):
    """Makes people; some it turns down at the first attempts, and some it never takes."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer a request, each item with a status of its own."""
        people = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with COUNTING:
            failed = len(REQUESTS) + len(FAILED) in {4, 10}
            (FAILED if failed else REQUESTS).append(len(people))
            answers = [] if failed else [self.make(person["number"]) for person in people]
        body = json.dumps(answers).encode()
        self.send_response(500 if failed else 207)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def make(self, number: int) -> dict[str, Any]:
        """Answer for one item."""
        ATTEMPTS[number] += 1
        if number % 250 == 9:
            return {"status": 422, "message": f"person {number} has no address"}
        if number % 20 == 3 and ATTEMPTS[number] == 1:
            return {"status": 429, "message": "too fast", "retry_after": 0.1}
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
        retryable=answer["status"] in {429, 503},
        retry_after=answer.get("retry_after"),
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

    async with httpx.AsyncClient(base_url=url) as client:

        async def make(people: list[dict[str, int]]) -> list[str | ItemError]:
            TIMES.append(anyio.current_time())
            response = await client.post("/people", json=people)
            response.raise_for_status()  # the whole request failed: an error for all of them
            return [result(answer) for answer in response.json()]

        # A transport error or a 500 is retried by its type, an ItemError by what it says of itself.
        retry = Retry(on=(httpx.TransportError, httpx.HTTPStatusError), attempts=6, backoff=BACKOFF)
        handler = rate_limited(make, RATE)
        async with Batcher(handler, max_batch_size=100, max_concurrency=4, retry=retry) as batcher:

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
    most = max(sum(start <= t < start + 1 for t in TIMES) for start in TIMES)
    print(f"requests in any second: {most} at most, {RATE} allowed")
    print(f"made: {len(made)}, failed: {len(failed)}")
    for number, error in failed.items():
        print(f"  {number:>3}: {error.code}, {error}, sent {ATTEMPTS[number]} times")
    if any(name != f"person-{number}" for number, name in made.items()):
        sys.exit("somebody got another's answer")


if __name__ == "__main__":
    anyio.run(main)
