"""Jobs that end, and webhooks that tell of it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import anyio

from microbatch.durable import DurableBatcher
from microbatch.http._message import METADATA_KEY
from microbatch.http._webhooks import Webhooks

if TYPE_CHECKING:
    from pathlib import Path

SECRET = f"whsec_{base64.b64encode(b'of tests, of 24 bytes at least').decode()}"
LOOPBACK = ["127.0.0.0/8"]


def webhooks(path: Path, **settings: Any) -> Webhooks:
    """Webhooks that may go to loopback, over http, and come again at once."""
    given = {"secret_of": lambda owner: SECRET, "delays": (0.0,) * 9} | settings
    return Webhooks(path, **given)


async def ended_job(path: Path, hooks: Webhooks, url: str | None, **settings: Any) -> Any:
    """Let a job with a webhook run to its end, which is told."""

    async def handler(items: list[int]) -> list[int]:
        return items

    async def on_job_end(status: Any) -> None:
        await hooks.on_job_end(status)
        told.set()

    told = anyio.Event()
    metadata = {} if url is None else {METADATA_KEY: url}
    async with DurableBatcher(
        path, handler, item_type=int, poll_interval=0.02, on_job_end=on_job_end
    ) as queue:
        job = await queue.enqueue_job([1, 2, 3], metadata=metadata, **settings)
        await told.wait()
        return await job.status()
