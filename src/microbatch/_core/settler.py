"""Each waiter of a run gets its outcome: a result, an error, or another attempt."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

from microbatch._loops.context import in_context
from microbatch._loops.on_asyncio import InvalidState
from microbatch._pure import checks
from microbatch._pure.copying import copy_exception
from microbatch._pure.exceptions import HandlerCrashed, Skipped
from microbatch._telemetry.kinds import counted, kind_of
from microbatch._telemetry.log import write

from .holding import is_refusal
from .pausing import pause_of
from .waiters import Member, Shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch._telemetry.observer import Observer

    from .backoff import Backoffs
    from .entry import Entry
    from .holding import Holder
    from .rules import Rules
    from .run import Run
    from .tally import Tally

#: Whose frames at the top of a handler's traceback are left out.
_OWN_FRAMES = frozenset(
    ("microbatch._core.dispatcher", "microbatch._core.call", in_context.__module__)
)


class Settler:
    """Gives every item of a run its outcome, once: a result, an error of its own, or another attempt.

    Attributes:
        now: The loop's clock.
    """

    __slots__ = ("_backoffs", "_holding", "_observer", "_rules", "_tally", "now")

    def __init__(
        self,
        rules: Rules,
        tally: Tally,
        backoffs: Backoffs,
        *,
        holding: Holder | None,
        observer: Observer | None,
    ) -> None:
        self._rules = rules
        self._tally = tally
        self._backoffs = backoffs
        self._holding = holding
        self._observer = observer
        self.now: Callable[[], float]

    def deliver(self, run: Run, results: list[Any], *, mixed: bool) -> None:
        """Give every item its result; mixed: there are exceptions among them."""
        if run.ended:
            return
        run.decided = True
        if run.promised:
            self.keep_promises(run)
        if run.entries is not None or run.early or (mixed and self._holding is not None):
            self._settle_each(run, results, mixed=mixed)
        else:
            self._tally.items += run.left
            if mixed or not run.uniform:
                self._deliver_each(run, results)
            elif run.group is not None:
                run.group.take_in(run.first, results)
            elif self._observer is not None and self._observer.per_item:
                # Once somebody listens waiters tell of their end; one C method would pass over that.
                self._deliver_each(run, results)
            elif run.size == 1:  # what serves for many would cost it 1 % of all that it does
                if not run.waiters[0].done():
                    run.waiters[0].set_result(results[0])
            else:
                _set_all(run.waiters, results)

    def _settle_each(self, run: Run, results: list[Any], *, mixed: bool) -> None:
        """The same where there are entries, or some outcomes are out already."""
        refused = []
        for index, waiter in enumerate(run.waiters):
            if waiter is None:
                continue
            if mixed and self._holding is not None and is_refusal(results[index]):
                refused.append(
                    index
                )  # last: what succeeded beside them tells how they are to be taken
            else:
                self.settle(run, index, results[index])
        for index in refused:
            self.settle(run, index, results[index])

    def _deliver_each(self, run: Run, results: list[Any]) -> None:
        """The same where a result may be an exception, or the waiters are of several kinds."""
        self._dress(run)
        for waiter, result in zip(run.waiters, results, strict=True):
            if issubclass(type(result), BaseException):
                self._raise_in(run, waiter, self._raisable(result))
            elif not waiter.done():
                waiter.set_result(result)

    def _dress(self, run: Run) -> None:
        """Tell the members of a group apart, if one stands for all."""
        group = run.group
        if group is not None:
            run.waiters = [group.member(run.first + i) for i in range(run.size)]
            run.group = None

    def settle(self, run: Run, index: int, result: Any) -> None:
        """Give one item its outcome, or send it into back-off."""
        # Not isinstance, here and below: a proxy, or a strange exception, raises when asked for its class.
        if issubclass(type(result), BaseException):
            self.settle_error(run, index, self._raisable(result))
            return
        waiter, entry = self._take_out(run, index)
        self._tally.items += 1
        if entry is not None:
            if self._holding is not None and (hold := run.lane.hold) is not None:
                hold.refusals = 0  # the backend takes some again
            note_attempts(waiter, entry.attempts)
        if not waiter.done():
            waiter.set_result(result)
        if entry is not None:
            entry.release()

    def settle_error(self, run: Run, index: int, error: Exception) -> None:
        """The same with an exception that belongs to this item alone."""
        waiter, entry = self._take_out(run, index)
        if self._holding is not None and is_refusal(error):
            if self._holding.takes(run, index, waiter, entry, error):
                run.held += 1
                return
        elif entry is not None and self._back_off(entry, error):
            run.retried = counted(run.retried, error)
            return
        self._tally.items += 1
        if entry is not None:
            note_attempts(waiter, entry.attempts)
        self._raise_in(run, waiter, error)
        if entry is not None:
            entry.release()

    def _take_out(self, run: Run, index: int) -> tuple[Any, Entry | None]:
        self._dress(run)
        waiter = run.waiters[index]
        run.waiters[index] = None
        run.early = True
        run.left -= 1
        self._tally.flying -= 1
        if run.entries is None:
            return waiter, None
        entry = run.entries[index]
        self._tally.flying_weight -= entry.weight
        if run.gone and waiter.done():
            run.gone -= 1
        return waiter, entry

    def _raise_in(self, run: Run, waiter: Any, error: Exception) -> None:
        if not waiter.done():
            waiter.set_exception(error)
        if run.fallen is None:
            run.fallen = []
        run.fallen.append(waiter)
        run.errors = counted(run.errors, error)
        if not issubclass(type(error), Skipped):
            self._tally.failed += 1

    def _raisable(self, error: BaseException) -> Exception:
        """Make of an exception one that may be raised in one caller, a copy of its own.

        Always a copy: handlers return constants too, in many batches.
        """
        kind = type(error)
        if issubclass(kind, StopIteration):  # no coroutine can raise it: as Python itself does
            stopped = RuntimeError("handler raised StopIteration")
            stopped.__cause__ = error
            return stopped
        if not issubclass(kind, Exception):
            crashed = HandlerCrashed(self._rules.name, kind.__name__)
            crashed.__cause__ = error
            return crashed
        return copy_exception(error)  # type: ignore[return-value]

    def _back_off(self, entry: Entry, error: Exception) -> bool:
        """Send a failed item again later, if it may be; tell whether."""
        retry = self._rules.retry
        if retry is None or entry.waiter.done() or not self._backoffs.takes(entry.weight):
            return False
        try:
            delay = retry.delay(error, entry.attempts, random.random)
            if delay is None:
                return False
            when = self.now() + pause_of(checks.number("delay", delay, minimum=0))
        except Exception:  # noqa: BLE001 - the user's predicate or subclass: the item fails with its own error
            write(
                logging.ERROR,
                "batcher %r: Retry(on=...) raised; the item is not retried",
                self._rules.name,
                exc_info=True,
            )
            return False
        self._backoffs.add(entry, when)
        return True

    def fail_waiters(self, run: Run, error: BaseException) -> None:
        if run.ended:
            return
        self.keep_promises(run)
        _trim(error)
        run.error = kind_of(self._raisable(error))
        for index in range(run.size):
            if run.waiters[index] is not None:
                self.settle_error(run, index, self._raisable(error))

    def keep_promise(self, run: Run, index: int) -> None:
        promise = run.promised.pop(index, None)
        if promise is not None and run.waiters[index] is not None:
            self.settle(run, index, promise[0])

    def keep_promises(self, run: Run) -> None:
        """Give items the outcomes that other threads had for them, before they get any other."""
        run.decided = True
        for index in list(run.promised):
            self.keep_promise(run, index)


def _set_all(waiters: list[Any], results: list[Any]) -> None:
    """Give waiters of one type their results."""
    # One C call an item: 400 instructions less than a loop that looks at each.
    calls = map(type(waiters[0]).set_result, waiters, results)
    while True:
        try:
            for _ in calls:
                pass
        except InvalidState:  # a caller has gone; the next ones are still to come
            continue
        return


def _trim(error: BaseException) -> None:
    """Leave out the first frames of a traceback: how we came to call the handler tells nobody anything."""
    try:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_globals.get("__name__") in _OWN_FRAMES:
            trace = trace.tb_next
        error.with_traceback(trace)
    except Exception:  # noqa: BLE001 - a class may do with both what it likes; then all is left in
        return


def note_attempts(waiter: Any, attempts: int) -> None:
    """Tell reports of more than one attempt."""
    if attempts == 1:
        return
    for one in waiter.waiters if isinstance(waiter, Shared) else (waiter,):
        if isinstance(one, Member):
            one[0].attempts[one[1]] = attempts
