"""What a NATS server knows of a consumer."""

from __future__ import annotations

import asyncio
from typing import Any

import nats


async def consumer(url: str, name: str) -> Any:
    """Return what the server knows of the consumer."""
    client = await nats.connect(url)
    try:
        return await client.jetstream().consumer_info(name, "w")
    finally:
        await client.close()


def left(url: str, name: str) -> int:
    """Return how many messages are not acknowledged, or not even delivered."""
    info = asyncio.run(consumer(url, name))
    return int(info.num_ack_pending + info.num_pending)
