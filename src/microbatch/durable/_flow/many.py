"""Many items that one call brings: stored together or not at all, however many they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import anyio.lowlevel

from microbatch.durable.records import Ticket

from .intake import HANDED_BYTES, HANDED_ITEMS
from .requests import new_items

if TYPE_CHECKING:
    from collections.abc import Iterable

    from microbatch.durable._file.codec import Codec
    from microbatch.durable._file.records import NewItem

    from .service import Service

T = TypeVar("T")

#: Items after which the others have a turn.
_TURN = 1_000


async def enqueue_all(
    service: Service,
    codec: Codec[T],
    queue: str,
    items: Iterable[T],
    *,
    priority: int,
    delay: float,
) -> list[Ticket]:
    """Store items and return their tickets in order.

    What one transaction takes goes in one. More than that is staged in several: nobody sees it before all is
    there.

    Args:
        service: The queue's parts, open.
        codec: How items read back.
        queue: The queue's name in the file.
        items: What is to be stored.
        priority: Of each.
        delay: Seconds before each may be handled.
    """
    intake, encode = service.intake, codec.encode
    if intake.crowded:
        await intake.room()
    payloads: list[bytes] = []
    size = staged = count = 0
    tickets: list[Ticket] = []
    with service.sending(lambda: count) as trace:
        part = service.next_part()
        try:
            for count, item in enumerate(items, 1):
                payload, _ = encode(item)
                payloads.append(payload)
                size += len(payload)
                if count % _TURN == 0:
                    await anyio.lowlevel.checkpoint()  # the others' turn
                if len(payloads) >= HANDED_ITEMS or size >= HANDED_BYTES:
                    news = new_items(payloads, priority, delay, trace)
                    staged += len(news)
                    await _stage(service, part, news, size)
                    payloads, size = [], 0
            news = new_items(payloads, priority, delay, trace)
            if staged:
                if news:
                    staged += len(news)
                    await _stage(service, part, news, size)
                intake.check_open()
                tickets = await _show(service, part, staged, queue)
            elif news:
                if intake.crowded:
                    await intake.room()
                waiter = service.create_waiter()
                intake.enqueue(news, size, waiter)
                tickets = await waiter
        except BaseException:
            if staged:
                service.drop_staged(part)
            raise
    return tickets


async def _stage(service: Service, part: int, news: list[NewItem], size: int) -> None:
    # It takes many turns, and a close in one of them would never answer.
    service.intake.check_open()
    await service.store.stage(part, news, size)


async def _show(service: Service, part: int, count: int, queue: str) -> list[Ticket]:
    spans, nonce = await service.store.show_staged(part, count)
    tickets: list[Ticket] = []
    for first, length in spans:
        for start in range(first, first + length, _TURN):
            numbers = range(start, min(start + _TURN, first + length))
            tickets += [Ticket(number, queue, None, nonce) for number in numbers]
            await anyio.lowlevel.cancel_shielded_checkpoint()  # it is done: nothing takes it back
    return tickets
