"""Outcomes: each waiter of a run gets its result, its error, or another attempt."""

from __future__ import annotations

import heapq
import logging
import random
from functools import partial
from typing import TYPE_CHECKING, Any

from . import _checks
from ._asyncio import InvalidState
from ._log import write
from ._runtime import in_context
from ._waiters import Member, Shared
from .errors import HandlerCrashed, HandlerTimeout, Skipped
from .handler import copy_exception
from .state import State
from .telemetry import counted, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .batch import Run
    from .buffer import Entry

#: Whose frames at the top of a handler's traceback are left out.
_OWN_FRAMES = frozenset(("microbatch.dispatch", in_context.__module__))


class Outcomes(State):
    """Gives every item of a run its outcome, once."""

    __slots__ = ()

    def _deliver(self, run: Run, results: list[Any], *, mixed: bool) -> None:
        """Give every item its result; mixed: there are exceptions among them."""
        if run.ended:
            return
        run.decided = True
        if run.promised:
            self._keep_promises(run)
        if run.entries is not None or run.early:
            self._settle_each(run, results)
        else:
            self._items += run.left
            if mixed or not run.uniform:
                self._deliver_each(run, results)
            elif run.group is not None:
                run.group.settle_run(run.first, results)
            elif self._observer is not None and self._observer.per_item:
                # Once somebody listens waiters tell of their end; one C method would pass over that.
                self._deliver_each(run, results)
            else:
                # One C call an item: 400 instructions less than a loop that looks at each.
                calls = map(type(run.waiters[0]).set_result, run.waiters, results)
                while True:
                    try:
                        for _ in calls:
                            pass
                    except InvalidState:  # a caller has gone; the next ones are still to come
                        continue
                    break
        if self._adaptive is not None:
            self._learn(run)
        self._end(run)

    def _settle_each(self, run: Run, results: list[Any]) -> None:
        """The same where there are entries, or some outcomes are out already."""
        for index, waiter in enumerate(run.waiters):
            if waiter is not None:
                self._settle(run, index, results[index])

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
            run.waiters = [Member((group, run.first + i)) for i in range(run.size)]
            run.group = None

    def _settle(self, run: Run, index: int, result: Any) -> None:
        """Give one item its outcome, or send it into back-off."""
        # Not isinstance, here and below: a proxy, or a strange exception, raises when asked for its class.
        if issubclass(type(result), BaseException):
            self._settle_error(run, index, self._raisable(result))
            return
        waiter, entry = self._take_out(run, index)
        self._items += 1
        if entry is not None:
            note_attempts(waiter, entry.attempts)
        if not waiter.done():
            waiter.set_result(result)
        if entry is not None:
            entry.release()

    def _settle_error(self, run: Run, index: int, error: Exception) -> None:
        """The same with an exception that belongs to this item alone."""
        waiter, entry = self._take_out(run, index)
        if entry is not None and self._back_off(entry, error):
            run.retried = counted(run.retried, error)
            return
        self._items += 1
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
        self._flying -= 1
        if run.entries is None:
            return waiter, None
        entry = run.entries[index]
        self._flying_weight -= entry.weight
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
            self._failed += 1

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
            crashed = HandlerCrashed(self._name, kind.__name__)
            crashed.__cause__ = error
            return crashed
        return copy_exception(error)  # type: ignore[return-value]

    def _back_off(self, entry: Entry, error: Exception) -> bool:
        """Send a failed item again later, if it may be; tell whether."""
        retry = self._retry
        if retry is None or entry.waiter.done() or self._state == "closed":
            return False
        if self._max_pending is not None and self._in_backoff >= max(1, self._max_pending // 2):
            return False
        most = self._max_pending_units
        if most is not None and 2 * (self._backoff_weight + entry.weight) > most:
            return False
        try:
            delay = retry.delay(error, entry.attempts, random.random)
            if delay is None:
                return False
            when = self._now() + _checks.number("delay", delay, minimum=0)
        except Exception:  # noqa: BLE001 - the user's predicate or subclass: the item fails with its own error
            write(
                logging.ERROR,
                "batcher %r: Retry(on=...) raised; the item is not retried",
                self._name,
                exc_info=True,
            )
            return False
        run: Any = entry.run
        if run.attempts is None:  # before they change: its handler may ask still
            run.attempts = [one.attempts for one in run.entries]
        entry.attempts += 1
        entry.state = "backoff"
        entry.run = None
        self._ranked.send_away(entry)
        self._in_backoff += 1
        self._backoff_weight += entry.weight
        heapq.heappush(self._backoffs, (when, next(self._backoff_seq), entry))
        return True

    def _fail(self, run: Run, error: BaseException) -> None:
        """Fail every item that has no outcome yet, and end the run."""
        self._fail_waiters(run, error)
        self._learn(run)
        self._end(run)

    def _fail_waiters(self, run: Run, error: BaseException) -> None:
        if run.ended:
            return
        self._keep_promises(run)
        _trim(error)
        run.error = kind_of(self._raisable(error))
        for index in range(run.size):
            if run.waiters[index] is not None:
                self._settle_error(run, index, self._raisable(error))

    def _give_up(self, run: Run, reason: Callable[[], Exception]) -> None:
        """End a run before its handler has: callers and slot go on, the handler is cancelled."""
        if run.ended:
            return
        self._keep_promises(run)
        run.error = kind_of(reason())
        for index in range(run.size):
            if run.waiters[index] is not None:
                self._settle_error(run, index, reason())
        self._cancel(run)
        self._free(run.slot)
        self._end(run)
        self._pump()

    def _expire(self, run: Run) -> None:
        """``handler_timeout`` has passed."""
        run.timer = None
        seconds = self._handler_timeout or 0.0
        self._learn(run, failed=True)
        self._give_up(run, lambda: HandlerTimeout(self._name, seconds))

    def _cancel(self, run: Run) -> None:
        """Cancel a running handler; what does not end is counted."""
        self._stuck.add(run)
        run.cancelled = True
        run.teaches = False
        if run.scope is not None:
            run.scope.cancel()
        else:
            run.slot.task.cancel()

    def _cancel_if_abandoned(self, run: Run) -> None:
        """Cancel a handler if that was asked for and all who still wait for it have gone.

        Not while a worker thread is busy with it: that cannot be stopped, and keeps its slot.
        """
        if (
            self._cancel_abandoned
            and run.gone
            and run.gone >= run.left
            and not (run.ended or run.cancelled or run.threads)
        ):
            self._cancel(run)

    def _resolve(self, run: Run, index: int, result: Any, shown: int) -> None:
        """``BatchInfo.resolve``: from the loop's thread at once, from the handler's by way of the loop."""
        runtime = self._runtime
        waiters: Any = run.waiters  # None once the run has ended, be it in this moment
        refusal = f"batcher {self._name!r}: item {shown} of the batch has its outcome already"
        if run.ended or runtime is None or waiters is None or waiters[index] is None:
            raise RuntimeError(refusal)
        # From other threads it is only a promise until the loop has had a turn. dict.setdefault and pop
        # are one step each, whichever threads come together here.
        promised = vars(run).setdefault("promised", {})
        promise = (result,)
        if promised.setdefault(index, promise) is not promise:
            raise RuntimeError(refusal)
        if runtime.is_current():
            self._settle_early(run, index)
        elif run.decided and promised.pop(index, None) is not None:
            raise RuntimeError(refusal)
        else:
            runtime.call_from_thread(partial(self._settle_early, run, index))

    def _settle_early(self, run: Run, index: int) -> None:
        if not run.ended:
            self._keep_promise(run, index)
            self._cancel_if_abandoned(run)
            self._changed()

    def _keep_promise(self, run: Run, index: int) -> None:
        promise = run.promised.pop(index, None)
        if promise is not None and run.waiters[index] is not None:
            self._settle(run, index, promise[0])

    def _keep_promises(self, run: Run) -> None:
        """Give items the outcomes that other threads had for them, before they get any other."""
        run.decided = True
        for index in list(run.promised):
            self._keep_promise(run, index)

    def _learn(self, run: Run, *, failed: bool = False) -> None:
        """Let a size that learns know of a call, unless it was cut short or never made."""
        adaptive = self._adaptive
        if adaptive is None or not run.teaches or run.ended:
            return
        run.teaches = False
        try:
            failed = failed or run.error is not None
            adaptive.record(run.size, self._now() - run.started, failed=failed)
        except Exception as error:  # noqa: BLE001 - a subclass's own: the batch has its outcomes
            self._stop_adapting(error)

    def _end(self, run: Run) -> None:
        """Close the books on a run whose items all have their outcome."""
        if run.ended:
            return
        run.ended = True
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None
        self._running -= 1
        self._flying -= run.left
        self._reasons[run.reason] += 1
        if run.slot is not None:
            run.slot.handled += run.size
        fallen: Any = None
        if run.errors is not None:
            fallen, run.fallen = (run.waiters, run.fallen), None
        run.items = run.waiters = run.group = run.contexts = lane = None  # type: ignore[assignment]
        if run.entries is not None:
            lane, run.lane, run.entries = run.lane, None, None
        if self._lanes is not None:
            if lane is not None:
                self._lanes.landed(lane, self._now())
            self._changed()
        # Last, since it runs foreign code.
        if run.errors is None:
            if self._observer is not None and run.record is not None:
                self._observer.end(run, self._now())
            return
        # Waiters whose Pending was dropped say so as they go; a log handler that hands such lines to this
        # very batcher would keep it busy for ever.
        self._telling = True
        self._fast = None
        try:
            if self._observer is not None:
                self._observer.end(run, self._now())
            del fallen
        finally:
            self._telling = False


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
