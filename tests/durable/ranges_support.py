"""Ranges for tests, and the items in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microbatch.durable._file.records import ENDED, Range, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PLAIN = Range(
    first=1, count=1, queue=1, lane=0, state=0, priority=0, due=10.0, since=10.0, attempts=0, deaths=0,
    apart=None, consumer=None, claim=None, ticket=7, job=None, position=None, key=None, enqueued=10.0,
    ended_at=None, keep_until=None, ended=None,
)  # fmt: skip


def made(first: int, count: int = 1, **fields: Any) -> Range:
    """Return a range: ready and plain but for what is given."""
    return _PLAIN._replace(first=first, count=count, **fields)


def items_of(found: Iterable[Range]) -> Iterator[tuple[Range, int]]:
    """Yield each item's range and id."""
    for one in found:
        for number in range(one.first, one.first + one.count):
            yield one, number


def item(one: Range, number: int) -> tuple[Any, ...]:
    """Return what a range says of one of its items: all, but for times of what has ended."""
    position = None if one.position is None else one.position + number - one.first
    alone = one._replace(first=number, count=1, position=position)
    if one.state in ENDED and one.state != State.DEAD:
        alone = alone._replace(since=0.0, enqueued=0.0, ended_at=0.0, keep_until=0.0, ended=0)
    elif one.state in ENDED:
        alone = alone._replace(ended=0)
    return alone
