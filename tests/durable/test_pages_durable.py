"""What docs/how-to/durable.md warns of is true."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from microbatch.durable import DurableQueue

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.real_time, pytest.mark.timeout(180)]


async def grown_by(queue: DurableQueue[bytes, object], items: int) -> int:
    """Store items, and return by how much the write-ahead log grew meanwhile."""
    before = (await queue.stats()).wal_bytes
    for _ in range(items):
        await queue.enqueue_many([bytes(50_000)] * 10)
    return (await queue.stats()).wal_bytes - before


async def test_an_open_read_transaction_keeps_the_log_growing(tmp_path: Path) -> None:
    """A shell that looks disturbs nobody only as long as it ends what it began."""
    path = tmp_path / "queue.db"
    async with DurableQueue(path, item_type=bytes) as queue:
        await grown_by(queue, 20)  # the log is as large as it gets by itself
        assert await grown_by(queue, 10) < 2_000_000
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as shell:
            shell.execute("BEGIN")
            shell.execute("SELECT count(*) FROM microbatch_items").fetchall()
            assert await grown_by(queue, 20) > 8_000_000
            shell.execute("COMMIT")
        assert await grown_by(queue, 10) < 2_000_000
