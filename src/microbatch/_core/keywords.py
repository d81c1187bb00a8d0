"""The keyword arguments of ``Batcher`` and ``batched``, for type checkers."""

# ruff: noqa: TC001, TC003 - who asks for type hints at run time finds them here
from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Literal, TypedDict, TypeVar

from microbatch._pure.adaptive import AdaptiveSize
from microbatch._pure.retry import Retry
from microbatch._telemetry.settings import Telemetry

T = TypeVar("T")


class Settings(TypedDict, Generic[T], total=False):
    """The keyword arguments of ``Batcher`` and ``batched``; ``Batcher`` says what each means."""

    max_batch_size: int | AdaptiveSize
    max_wait: float
    max_concurrency: int
    max_pending: int | None
    on_full: Literal["wait", "reject"]
    weigh: Callable[[T], float] | None
    max_batch_weight: float | None
    max_pending_weight: float | None
    partition: Callable[[T], Hashable] | None
    partition_concurrency: int | None
    coalesce: Callable[[T], Hashable] | None
    retry: Retry | None
    handler_timeout: float | None
    drain_timeout: float | None
    cancel_abandoned: bool
    capture_context: bool
    name: str | None
    telemetry: Telemetry | Literal[False] | None
