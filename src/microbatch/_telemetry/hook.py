"""A function of the program's own that is told of every batch."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from microbatch._pure import checks
from microbatch._pure.handler import FATAL, find, handler_kind, name_of
from microbatch._pure.report import code_of_class

from .batch_record import BatchRecord, record_of
from .figures import Figures
from .log import LOG_INTERVAL, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from .seen import SeenRun


class Hook:
    """Tells a function of each batch of one batcher, and bears what it raises.

    Args:
        function: What is told.
        name: The batcher's name.
        durable: True if its batches are of a durable queue.
    """

    __slots__ = ("_durable", "_function", "_logged_at", "_muted", "_name")

    def __init__(
        self, function: Callable[[BatchRecord], object], name: str, *, durable: bool
    ) -> None:
        self._function = function
        self._name = name
        self._durable = durable
        self._logged_at = -math.inf
        self._muted = 0

    def tell(self, run: SeenRun, now: float) -> BaseException | None:
        """Tell of a run that has ended; return what was raised that must end the program."""
        figures = Figures(run, now, durable=self._durable)
        record = record_of(
            name=self._name,
            size=run.size,
            reason=run.reason,
            seconds=figures.duration,
            oldest_wait=figures.wait,
            succeeded=figures.succeeded,
            failed=figures.failed,
            skipped=figures.skipped,
            retried=figures.retried,
            held=run.held,
            errors=_by_code(figures.errors) if figures.errors else {},
        )
        try:
            returned = self._function(record)
            if returned is not None:
                checks.refuse_awaitable("what on_batch returned", returned)
        except BaseException as error:  # noqa: BLE001 - the program's function: the batch has its outcomes
            self._log(error, now)
            return find(error, FATAL)
        return None

    def _log(self, error: BaseException, now: float) -> None:
        if now < self._logged_at + LOG_INTERVAL:
            self._muted += 1
            return
        self._logged_at = now
        muted, self._muted = self._muted, 0
        write(
            logging.ERROR,
            "batcher %r: on_batch raised; the batch is as it was%s",
            self._name,
            f"; before that, {muted} times not logged" if muted else "",
            exc_info=error,
        )


def _by_code(kinds: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for (cls, own), count in kinds.items():
        code = code_of_class(cls) if own is None else own
        counts[code] = counts.get(code, 0) + count
    return counts


def check_hook(function: Any) -> None:
    """Refuse what cannot be told of batches, by name.

    Raises:
        TypeError: If it is no function, or one whose call has to be awaited or iterated.
    """
    checks.function("on_batch", function)
    if function is None:
        return
    try:
        kind = handler_kind(function)
    except TypeError:  # a plain generator function
        kind = "generator"
    if kind != "thread":
        what = "a coroutine function" if kind == "async" else "a generator function"
        raise TypeError(
            f"on_batch must be a plain function, got {what}, {name_of(function)}: it is called in "
            "the event loop, and nobody would await it"
        )
