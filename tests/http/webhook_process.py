"""A worker of its own that runs jobs and sends webhooks: ``python webhook_process.py FOLDER PORT``; a line ends it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from webhook_support import LOOPBACK, webhooks

from microbatch.durable import DurableBatcher


async def handler(items: list[int]) -> list[int]:
    return items


async def main(folder: Path, port: str) -> None:
    hooks = webhooks(
        folder / "hooks.db", allow=[f"127.0.0.1:{port}", *LOOPBACK], delays=(0.05,) * 1000
    )
    async with (
        hooks,
        DurableBatcher(folder / "jobs.db", handler, item_type=int, on_job_end=hooks.on_job_end),
    ):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
