"""A log handler that feeds a batcher: what the batcher itself logs does not keep it busy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from support import Recorder, counted, outcome, run, turns

from microbatch import Backoff, Batcher, Retry, Telemetry, current_batch

if TYPE_CHECKING:
    from collections.abc import Iterator

# In event loops of their own: where anyio's plugin runs a test, asyncio hands its lines to the plugin.
pytestmark = [pytest.mark.timeout(180), pytest.mark.asyncio_logs]

logger = logging.getLogger("application")


class Feeding(logging.Handler):
    """Hands every line to a batcher, as one does to ship logs in bulk."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.batcher is not None:
            self.batcher.submit_nowait(record.name)


@pytest.fixture
def feeding() -> Iterator[Feeding]:
    handler = Feeding()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


class Down:
    """A backend that is down; it says what it was asked for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.fails = True

    async def __call__(self, lines: list[str]) -> None:
        self.lines += lines
        await anyio.sleep(0.01)
        if self.fails:
            raise ConnectionError


@pytest.mark.parametrize("settings", [
    pytest.param({}, id="plain"),
    pytest.param({"max_wait": 0.5}, id="waiting"),
    pytest.param({"cancel_abandoned": True}, id="entries"),
    pytest.param({"coalesce": str}, id="sharing"),
    pytest.param({"telemetry": False}, id="untold"),
    pytest.param({"handler_timeout": 0.005}, id="timeout"),
    pytest.param({"telemetry": Telemetry(trace_items=True)}, id="items"),
    pytest.param({"retry": Retry(on=ConnectionError, attempts=2, backoff=Backoff(initial=0))}, id="retried"),
])  # fmt: skip
def test_a_line_about_a_batcher_does_not_feed_that_batcher(
    backend_name: str, feeding: Feeding, settings: dict[str, Any]
) -> None:
    """From one line 7,000 handler calls were made in two seconds: each failure was a line of its own."""

    async def main() -> None:
        backend = Down()
        async with Batcher(backend, **settings) as batcher:
            feeding.batcher = batcher
            logger.warning("one")
            await anyio.sleep(60)
            calls = 2 if "retry" in settings else 1
            assert backend.lines == ["application"] * calls
            backend.fails = False
            logger.warning("two")
            await anyio.sleep(60)
            feeding.batcher = None
            assert len(backend.lines) == calls + 1
            assert counted(batcher).pending == 0

    run(backend_name, main)


@pytest.mark.parametrize("way", ["resolve", "yield", "some"])
def test_the_same_for_items_that_fail_alone(backend_name: str, feeding: Feeding, way: str) -> None:
    """Early or at the end: their lines come when the batch is over."""

    async def main() -> None:
        seen: list[str] = []

        async def some(lines: list[str]) -> list[Any]:
            seen.extend(lines)
            batch = current_batch()
            assert batch is not None
            if way == "resolve":
                batch.resolve(0, ConnectionError())
            return [ConnectionError() for _ in lines]

        async def generator(lines: list[str]) -> Any:
            seen.extend(lines)
            for index, _ in enumerate(lines):
                yield index, ConnectionError()

        handler: Any = generator if way == "yield" else some
        async with Batcher[str, Any](handler) as batcher:
            feeding.batcher = batcher
            logger.warning("one")
            logger.warning("two")
            await anyio.sleep(60)
            feeding.batcher = None
        assert seen == ["application"] * 2

    run(backend_name, main)


def test_lines_about_other_batchers_are_taken(backend_name: str, feeding: Feeding) -> None:
    """The log's own batcher is where one wants to read that the orders' failed."""

    async def main() -> None:
        backend = Down()
        backend.fails = False
        async with Batcher(backend) as logs, Batcher(Recorder(fails=(1,)), name="orders") as orders:
            feeding.batcher = logs
            assert type(await outcome(orders.submit(1))) is ValueError
            await anyio.sleep(1)
            feeding.batcher = None
        assert backend.lines == ["microbatch"]

    run(backend_name, main)


def test_what_is_handed_in_while_it_tells_is_withdrawn(backend_name: str, feeding: Feeding) -> None:
    """Its Pending says so; the next one from anywhere else is taken as ever."""

    async def main() -> None:
        kept: list[Any] = []
        handler = Recorder(fails=(1,))

        async with Batcher(handler) as batcher:

            class Keeping:
                def submit_nowait(self, name: str) -> None:
                    kept.append(batcher.submit_nowait(7))

            feeding.batcher = Keeping()
            assert type(await outcome(batcher.submit(1))) is ValueError
            await turns()
            feeding.batcher = None
            (one,) = kept
            assert one.done()
            assert one.cancel() is False
            assert await batcher.submit(2) == 20
            assert counted(batcher).items == 2
        assert handler.batches == [[1], [2]]

    run(backend_name, main)
