"""What several files of tests of jobs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_support import check_jobs, rows, until

if TYPE_CHECKING:
    from pathlib import Path

NOTHING = [(0,)] * 6


def left_of_jobs(path: Path) -> list[tuple[int]]:
    """Return how many rows of any job each table has."""
    tables = ("jobs", "job_details", "item_ids", "ranges", "blobs", "errors")
    return [rows(path, f"SELECT count(*) FROM microbatch_{table}")[0] for table in tables]


async def nothing_is_left(path: Path) -> None:
    """Wait until nothing of any job is there."""
    await until(lambda: left_of_jobs(path) == NOTHING)
    check_jobs(path)
