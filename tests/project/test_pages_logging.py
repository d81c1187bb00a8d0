"""The filter that docs/how-to/fire-and-forget.md shows: without it a backend that is down is kept busy for ever."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from pages_support import ROOT, blocks_of
from support import run, turns

from microbatch import Batcher, BatcherFull

if TYPE_CHECKING:
    from collections.abc import Iterator

# In event loops of their own: anyio's test runner takes what asyncio would log.
pytestmark = [pytest.mark.asyncio_logs, pytest.mark.timeout(20)]


@pytest.fixture
def page() -> dict[str, Any]:
    """The names that the page's block on logging defines, without its program."""
    (block,) = [
        block.source
        for block in blocks_of(ROOT / "docs/how-to/fire-and-forget.md")
        if "class BatchHandler" in block.source
    ]
    names: dict[str, Any] = {"Batcher": Batcher, "BatcherFull": BatcherFull, "__name__": "page"}
    exec(block.partition("async def main")[0], names)
    return names


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, whose handlers are taken away again."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield root
    root.handlers[:] = before


async def calls_after_one_line(handler_class: Any, root: logging.Logger, filtered: bool) -> int:
    """Log one line while the backend is down; return how often the backend was called."""
    calls = 0

    async def down(lines: list[str]) -> None:
        nonlocal calls
        calls += 1
        if calls < 10:  # else this would go on for ever
            logging.getLogger("client").warning("connecting")
            raise ConnectionError("down")

    batcher: Batcher[str, None] = Batcher(down)
    handler = handler_class(batcher)
    if not filtered:
        handler.filters.clear()
    root.addHandler(handler)
    logging.getLogger("shop").warning("one line")
    for _ in range(20):
        await anyio.sleep(11)  # microbatch logs failed batches of a batcher once in ten seconds
        await turns()
    root.removeHandler(handler)
    await batcher.aclose()
    return calls


def test_with_the_pages_filter_one_line_is_one_call(
    page: dict[str, Any], root: logging.Logger, backend_name: str
) -> None:
    """Neither our lines, nor the event loop's, nor the bulk function's own become items."""
    assert run(backend_name, calls_after_one_line, page["BatchHandler"], root, True) == 1


def test_without_the_filter_it_would_go_on_for_ever(
    page: dict[str, Any], root: logging.Logger, backend_name: str
) -> None:
    """What the page warns of is true, so the test above can fail."""
    assert run(backend_name, calls_after_one_line, page["BatchHandler"], root, False) == 10
