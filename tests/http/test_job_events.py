"""Server-sent events: a job's progress as it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from http_jobs_support import Wire, shop_of

from microbatch.http import _job_reading

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.real_time,
    pytest.mark.parametrize("backend_name", ["asyncio", "uvloop"], indirect=True),
]


async def test_progress_comes_as_it_happens_and_the_end_last(tmp_path: Path) -> None:
    """The first at once, then what changes; then the stream is over."""
    async with shop_of(tmp_path / "q", of_queue={"max_batch_size": 1}) as shop:
        await shop.queue.pause()
        job = await shop.job(3)
        wire = Wire("GET", job["links"]["events"])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.run, shop.api)
            await wire.until(b"event: progress")
            await shop.queue.resume()
        assert wire.status == 200
        assert wire.headers["content-type"].startswith("text/event-stream")
        assert wire.headers["cache-control"] == "no-store"
        assert wire.headers["x-content-type-options"] == "nosniff"
        assert wire.is_whole
        assert wire.content.startswith(b"retry: 1000\n\n")
        events = wire.events()
        assert [name for name, _ in events] == ["progress"] * (len(events) - 1) + ["ended"]
        processed = [document["progress"]["processed"] for _, document in events]
        assert processed == sorted(processed)
        assert (processed[0], processed[-1]) == (0, 3)
        assert events[-1][1]["outcome"] == "succeeded"


async def test_a_client_that_comes_again_is_not_told_what_it_knows(tmp_path: Path) -> None:
    """By the id of the last event; the end is told in any case."""
    async with shop_of(tmp_path / "q") as shop:
        await shop.queue.pause()
        job = await shop.job(1)
        wire = Wire("GET", job["links"]["events"])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.run, shop.api)
            await wire.until(b"event: progress")
            await wire.leave()
        (known,) = (line[4:] for line in wire.content.decode().splitlines() if line[:4] == "id: ")
        assert not wire.is_whole
        again = Wire("GET", job["links"]["events"], last_event_id=known)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(again.run, shop.api)
            await again.until(b"retry")
            await shop.queue.resume()
        states = [document["life"] for _, document in again.events()]
        assert "queued" not in states
        assert states[-1] == "ended"
        last = Wire("GET", job["links"]["events"], last_event_id=known)
        await last.run(shop.api)
        assert [name for name, _ in last.events()] == ["ended"]


async def test_a_stream_shows_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing may happen for long: a proxy, or a dead connection, is found out by a comment now and then."""
    monkeypatch.setattr(_job_reading, "_SIGNS_APART", 0.02)
    async with shop_of(tmp_path / "q") as shop:
        await shop.queue.pause()
        job = await shop.job(1)
        wire = Wire("GET", job["links"]["events"])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.run, shop.api)
            await wire.body(b"nobody asked for this")
            await wire.until(b"\n\n:\n\n")
            await wire.leave()
        assert not wire.is_whole


async def test_a_stream_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 55 s, whole, so that the client comes again. Here it is quicker."""
    assert _job_reading.EVENTS_SECONDS == 55
    monkeypatch.setattr(_job_reading, "EVENTS_SECONDS", 0.1)
    async with shop_of(tmp_path / "q") as shop:
        await shop.queue.pause()
        job = await shop.job(1)
        wire = Wire("GET", job["links"]["events"])
        await wire.run(shop.api)
        assert wire.is_whole
        assert "ended" not in [name for name, _ in wire.events()]


async def test_the_stream_of_a_job_that_is_deleted_ends(tmp_path: Path) -> None:
    """There is nothing more to tell."""
    async with shop_of(tmp_path / "q") as shop:
        job = await shop.job(1)
        await shop.ended(job)
        wire = Wire("GET", job["links"]["events"])

        async def delete() -> None:
            assert (await shop.ann.delete(job["links"]["self"])).status_code == 204

        wire.at_start = delete
        await wire.run(shop.api)
        assert wire.is_whole
        assert wire.events() == []


@pytest.mark.parametrize("begun", [False, True])
async def test_the_stream_of_a_queue_that_closes_ends(tmp_path: Path, begun: bool) -> None:
    """Before its first look or between two: no error of the server's. Who comes again is told to come later."""
    async with shop_of(tmp_path / "q") as shop:
        await shop.queue.pause()
        job = await shop.job(1)
        wire = Wire("GET", job["links"]["events"])
        if not begun:

            async def close() -> None:
                await shop.queue.aclose(0)

            wire.at_start = close
            await wire.run(shop.api)
            assert wire.events() == []
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wire.run, shop.api)
                await wire.until(b"event: progress")
                await shop.queue.aclose(0)
        assert wire.is_whole
        again = Wire("GET", job["links"]["events"])
        await again.run(shop.api)
        assert (again.status, again.headers["retry-after"]) == (503, "5")


async def test_head_tells_of_the_stream_and_is_none(tmp_path: Path) -> None:
    """It would never end else."""
    async with shop_of(tmp_path / "q") as shop:
        job = await shop.job(1)
        head = Wire("HEAD", job["links"]["events"])
        await head.run(shop.api)
        assert (head.status, head.content, head.is_whole) == (200, b"", True)
