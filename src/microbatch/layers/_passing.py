"""What the layers have in common: the types of handlers, names, and early outcomes."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from microbatch._pure.exceptions import HandlerCrashed

if TYPE_CHECKING:
    from microbatch._core.info import BatchInfo

T = TypeVar("T")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

#: What a layer takes: an async or plain bulk function that returns results ...
Handler = Callable[[list[T]], Awaitable[Collection[R | Exception]] | Collection[R | Exception]]
#: ... or one that has nothing to tell.
SilentHandler = Callable[[list[T]], Awaitable[None] | None]
#: What a layer gives back.
BulkHandler = Callable[[list[T]], Coroutine[Any, Any, list[R | Exception]]]


def named_after(handler: Any) -> Callable[[F], F]:
    """Give a layered handler the name and docstring of the one inside, for logs and telemetry.

    Its annotations are not taken over: they would be wrong wherever a layer changes a type.
    """
    while isinstance(handler, functools.partial):
        handler = handler.func

    def name(function: F) -> F:
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(function, attribute, getattr(handler, attribute, getattr(function, attribute)))
        return function

    return name


def hand_over(batch: BatchInfo | None, index: int, result: Any) -> None:
    """Let an item's caller go on now, unless a layer further in did so or there is no batch."""
    if batch is not None:
        with contextlib.suppress(RuntimeError):
            batch.resolve(index, result)


def is_asked_for() -> bool:
    """Tell, of a cancellation that was caught here, whether somebody cancelled this task.

    If not, what runs here raised it itself. Let through, it would quietly end the task group
    around.
    """
    return anyio.current_effective_deadline() == -math.inf


def crash_of(name: str, error: BaseException) -> HandlerCrashed:
    """Return what a caller gets for an exception that must not reach it as it is."""
    crash = HandlerCrashed(name, type(error).__name__)
    crash.__cause__ = error
    return crash
