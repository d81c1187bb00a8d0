"""Webhooks over an outage of the receiver and the death of the sender, in processes of their own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from receiver_support import Receiver
from standardwebhooks.webhooks import Webhook
from support import ENVIRONMENT
from webhook_support import SECRET

from microbatch.durable import DurableQueue
from microbatch.http._message import METADATA_KEY, Message

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent


@contextlib.contextmanager
def worker(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """A process that runs jobs and sends webhooks; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, HERE / "webhook_process.py", folder, str(port)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


async def until(messages: DurableQueue[Message, int], state: str) -> None:
    """Wait until the one message is in a state: for what another process does."""
    while not getattr(await messages.stats(), state):  # noqa: ASYNC110
        await anyio.sleep(0.01)


@pytest.mark.anyio
@pytest.mark.real_time
@pytest.mark.slow
@pytest.mark.parametrize("backend_name", ["asyncio"], indirect=True)
async def test_a_webhook_arrives_after_an_outage_and_a_restart_of_both_sides(
    tmp_path: Path,
) -> None:
    """The receiver is away, the sender is killed: the job's end is told all the same, once both are back."""
    away = socket.socket()  # it keeps the port for the receiver, and listens to nobody
    away.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    away.bind(("127.0.0.1", 0))
    port = away.getsockname()[1]
    url = f"http://127.0.0.1:{port}/hook"
    async with (
        DurableQueue(tmp_path / "jobs.db", item_type=int) as queue,
        DurableQueue(
            tmp_path / "hooks.db", item_type=Message, queue="microbatch-webhooks"
        ) as messages,
    ):
        with worker(tmp_path, port):
            job = await queue.enqueue_job([1, 2, 3], metadata={METADATA_KEY: url}, owner="ann")
            await job.wait()
            await until(messages, "scheduled")  # it was sent in vain
        assert (await messages.stats()).done == 0
        with worker(tmp_path, port):
            async with Receiver([503, 204], port=port) as again:
                received = (await again.got(2))[1]
                await until(messages, "done")
                assert (await messages.stats()).depth == 0
    away.close()
    told = Webhook(SECRET).verify(received.body, received.headers)
    assert told["data"]["jobId"] == job.id
