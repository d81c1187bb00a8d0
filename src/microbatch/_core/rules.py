"""The settings of one batcher: checked once, never changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from microbatch._pure import checks
from microbatch._pure.adaptive import AdaptiveSize
from microbatch._pure.handler import HandlerKind, handler_kind, name_of
from microbatch._pure.retry import Retry

from .scale import Scale

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

#: Items that batches may start with in one turn of the loop, the first batch excepted. Their callers then
#: wake in the next turn, while they are still in the processor's cache: with 10,000 callers and batches of
#: 100 that takes a third off the whole cost of an item. And nobody else waits long for a turn.
TURN = 100


class Rules:
    """The settings of one batcher; `Batcher` says what each means.

    Attributes:
        size: The most items that a batch may ever have.
        adaptive: What says how many it may have now, if its size learns.
        rejects: True if callers are refused where there is no room, rather than held back.
        kind: What the handler is: ``"async"``, ``"generator"`` or ``"thread"``.
        scale: Turns weights into whole units, in which they are counted.
        max_batch_units, max_pending_units: The limits of weight, in those.
        scoped: True if a handler may be cancelled while others go on.
        is_plain: True if nothing is set that needs an entry for each item.
        pace: Batches that may start in one turn of the loop.

    Raises:
        TypeError: If the handler cannot be called or a setting has the wrong type.
        ValueError: If a setting is out of its range, or lacks the one that it needs.
    """

    __slots__ = (
        "adaptive",
        "asks",
        "cancel_abandoned",
        "capture_context",
        "coalesce",
        "drain_timeout",
        "handler",
        "handler_timeout",
        "is_plain",
        "kind",
        "max_batch_units",
        "max_batch_weight",
        "max_concurrency",
        "max_pending",
        "max_pending_units",
        "max_pending_weight",
        "max_wait",
        "name",
        "pace",
        "partition",
        "partition_concurrency",
        "rejects",
        "retry",
        "scale",
        "scoped",
        "size",
        "weigh",
    )

    def __init__(
        self,
        handler: Callable[[list[Any]], Any],
        *,
        max_batch_size: int | AdaptiveSize,
        max_wait: float,
        max_concurrency: int,
        max_pending: int | None,
        on_full: Literal["wait", "reject"] = "wait",
        weigh: Callable[[Any], float] | None = None,
        max_batch_weight: float | None = None,
        max_pending_weight: float | None = None,
        partition: Callable[[Any], Hashable] | None = None,
        partition_concurrency: int | None = None,
        coalesce: Callable[[Any], Hashable] | None = None,
        retry: Retry | None = None,
        handler_timeout: float | None = None,
        drain_timeout: float | None = None,
        cancel_abandoned: bool = False,
        capture_context: bool = False,
        name: str | None = None,
    ) -> None:
        self.kind: HandlerKind = handler_kind(handler)
        self.handler: Callable[[list[Any]], Any] = handler
        learns = isinstance(max_batch_size, AdaptiveSize)
        self.adaptive: AdaptiveSize | None = (
            max_batch_size if isinstance(max_batch_size, AdaptiveSize) else None
        )
        self.size: int = (
            max_batch_size.maximum
            if isinstance(max_batch_size, AdaptiveSize)
            else checks.whole_number("max_batch_size", max_batch_size, 1)
        )
        self.max_wait: float = checks.number("max_wait", max_wait, minimum=0)
        self.max_concurrency: int = checks.whole_number("max_concurrency", max_concurrency, 1)
        self.max_pending: int | None = (
            None if max_pending is None else checks.whole_number("max_pending", max_pending, 1)
        )
        if on_full not in ("wait", "reject"):
            raise ValueError(f"on_full must be 'wait' or 'reject', got {on_full!r}")
        self.rejects: bool = on_full == "reject"
        self.weigh: Callable[[Any], float] | None = checks.function("weigh", weigh)
        self.max_batch_weight: float | None = _limit(
            "max_batch_weight", max_batch_weight, weigh, "weigh"
        )
        self.max_pending_weight: float | None = _limit(
            "max_pending_weight", max_pending_weight, weigh, "weigh"
        )
        if weigh is not None and max_batch_weight is None and max_pending_weight is None:
            raise ValueError(
                f"weigh needs max_batch_weight or max_pending_weight, got weigh={weigh!r} without either"
            )
        self.scale: Scale = Scale(max_batch_weight, max_pending_weight)
        self.max_batch_units: int | None = self._in_units(self.max_batch_weight)
        self.max_pending_units: int | None = self._in_units(self.max_pending_weight)
        self.partition: Callable[[Any], Hashable] | None = checks.function("partition", partition)
        if partition_concurrency is not None:
            checks.whole_number("partition_concurrency", partition_concurrency, 1)
            _needs("partition_concurrency", partition_concurrency, partition, "partition")
        self.partition_concurrency: int | None = partition_concurrency
        self.coalesce: Callable[[Any], Hashable] | None = checks.function("coalesce", coalesce)
        if retry is not None and not isinstance(retry, Retry):
            raise TypeError(f"retry must be a Retry or None, got {retry!r}")
        self.retry: Retry | None = retry
        self.handler_timeout: float | None = (
            None
            if handler_timeout is None
            else checks.number("handler_timeout", handler_timeout, above=0)
        )
        self.drain_timeout: float | None = drain_seconds(drain_timeout)
        self.cancel_abandoned: bool = checks.flag("cancel_abandoned", cancel_abandoned)
        self.capture_context: bool = checks.flag("capture_context", capture_context)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, got {name!r}")
        self.name: str = name_of(handler) if name is None else name
        self.scoped: bool = handler_timeout is not None or cancel_abandoned
        self.is_plain: bool = not (
            learns or weigh or partition or coalesce or retry or cancel_abandoned or capture_context
        )
        # Whether it matters to an item whose it is: who is asked about it may look at its caller's context.
        self.asks: bool = bool(weigh or partition or coalesce or capture_context)
        self.pace: int = max(1, TURN // self.size)

    def _in_units(self, limit: float | None) -> int | None:
        return None if limit is None else self.scale.units(limit)


def drain_seconds(value: float | None) -> float | None:
    """Check a ``drain_timeout``: seconds of at least 0, or None for no limit."""
    return None if value is None else checks.number("drain_timeout", value, minimum=0)


def _needs(name: str, value: object, other: object, other_name: str) -> None:
    if other is None:
        raise ValueError(f"{name} needs {other_name}, got {name}={value!r} without it")


def _limit(name: str, value: float | None, other: object, other_name: str) -> float | None:
    if value is None:
        return None
    checks.number(name, value, above=0)
    _needs(name, value, other, other_name)
    return value
