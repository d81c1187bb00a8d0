"""`in_process`: CPU-bound bulk work in worker processes."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Generic, Self, overload

import anyio
from anyio.lowlevel import RunVar

from microbatch._core.info import batcher_name, current_batch
from microbatch._loops.calling import run_in_thread
from microbatch._pure import checks
from microbatch._pure.exceptions import HandlerCrashed
from microbatch._pure.handler import handler_kind, name_of, results_of

from ._passing import R, T, hand_over
from ._workers import Died, Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from ._workers import Worker


class WorkerDied(HandlerCrashed):
    """The worker died, so what became of its items is unknown; the next call gets a new one.

    Attributes:
        name: The handler's name.
        kind: What the process died of: a signal such as ``"SIGKILL"``, or ``"exit code 3"``.
        starting: True if it died before it had any items, as one does that imports a main program
            which is not guarded by ``if __name__ == "__main__":``.
    """

    def __init__(self, name: str, kind: str, *, starting: bool = False) -> None:
        super().__init__(name, kind)
        self.starting: bool = starting

    def __str__(self) -> str:
        if self.starting:
            return (
                f"the worker process of {self.name!r} died of {self.kind} while it started: "
                "if it imported the main program, guard what it runs by "
                "`if __name__ == '__main__':`"
            )
        return f"the worker process of {self.name!r} died of {self.kind} while it had these items"


@overload
def in_process(
    handler: Callable[[list[T]], None], *, workers: int | None = None
) -> ProcessHandler[T, None]: ...
@overload
def in_process(
    handler: Callable[[list[T]], Sequence[R | Exception]], *, workers: int | None = None
) -> ProcessHandler[T, R]: ...
def in_process(handler: Any, *, workers: int | None = None) -> ProcessHandler[Any, Any]:
    """Run a plain bulk handler in worker processes: for work that is bound by the CPU.

    A batch runs in one worker, so give the `Batcher` ``max_concurrency=workers`` to keep them all
    busy. Workers are started when they are needed, import the handler anew, and stay for later
    batches; nothing of the parent's memory, ``current_batch()`` included, is there. Items and
    results travel as pickles, made in threads. A worker that dies fails its batch with `WorkerDied`
    and is replaced. A cancelled batch, or one past its ``handler_timeout``, has its worker killed:
    the one way to stop what burns the CPU.

    The workers end with `ProcessHandler.aclose`, at the end of ``async with``, when the handler is
    dropped, and with this process, even if that is killed.

    Args:
        handler: A plain function at the top level of a module that can be imported. Where that is
            the main program, guard what it runs by ``if __name__ == "__main__":``.
        workers: Processes at most, at least 1; by default as many as this process may use CPUs.

    Raises:
        TypeError: If the handler is async, or cannot be pickled, as a lambda or a nested function
            cannot.
        ValueError: If ``workers`` is below 1.
    """
    return ProcessHandler(handler, workers)


class ProcessHandler(Generic[T, R]):
    """A handler whose batches run in worker processes: what `in_process` returns."""

    def __init__(self, handler: Any, workers: int | None) -> None:
        name = name_of(handler)
        if handler_kind(handler) != "thread":
            raise TypeError(f"in_process runs plain functions, got {name}, which is async")
        try:
            self._handler = pickle.dumps(handler, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise TypeError(
                f"in_process needs a function at the top level of a module, got {name}: {error}"
            ) from error
        if workers is None:
            linux = sys.platform == "linux"
            workers = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
        self.__name__ = self.__qualname__ = name
        self._workers = checks.whole_number("workers", workers, 1)
        self._limiter: RunVar[anyio.CapacityLimiter] = RunVar("microbatch_workers")
        self._closed = False
        self._open_pool()

    def _open_pool(self) -> None:
        self._pool = Pool(self._handler, self.__name__)
        weakref.finalize(self, self._pool.end)

    async def __call__(self, items: list[T], /) -> list[R | Exception]:
        """Run one batch in a worker.

        An item that cannot be pickled fails alone, with ``TypeError``.

        Raises:
            WorkerDied: If the worker process dies meanwhile.
            RuntimeError: After ``aclose``.
            TypeError: If the results cannot be pickled or are none, or no worker can import the
                handler.
            ResultCountError: If there is not one result for each item.
            Exception: What the handler raises, with the worker's traceback in a note.
        """
        if self._closed:
            raise RuntimeError(f"the workers of {self.__name__!r} are closed")
        if not items:
            return []
        if self._pool.is_inherited():  # by a fork: those workers are the parent's
            self._open_pool()
        try:
            limiter = self._limiter.get()
        except LookupError:
            limiter = anyio.CapacityLimiter(self._workers)
            self._limiter.set(limiter)
        job = _Job(items)
        try:
            answer = await run_in_thread(
                self._run, self._pool, job, abandon_on_cancel=True, limiter=limiter
            )
        except anyio.get_cancelled_exc_class():
            job.abandon()
            raise
        batch = current_batch()
        results: list[Any] = [None] * len(items)
        for index, error in job.refused.items():
            results[index] = error
            hand_over(batch, index, error)
        accepted = [index for index in range(len(items)) if index not in job.refused]
        for index, result in zip(
            accepted, results_of(answer, len(accepted), batcher_name()), strict=True
        ):
            results[index] = result
        return results

    def _run(self, pool: Pool, job: _Job) -> Any:
        """Have a worker do a job; in a thread."""
        payload = job.pickled()
        if payload is None:
            return []
        try:
            worker = pool.take(job.start)
        except Died as death:
            raise WorkerDied(self.__name__, str(death), starting=True) from None
        try:
            job.start(worker)
            succeeded, answer = worker.ask(payload)
            job.end()
        except (EOFError, OSError):
            raise WorkerDied(self.__name__, pool.discard(worker, died=True)) from None
        except BaseException:
            pool.discard(worker)
            raise
        pool.give_back(worker)
        if not succeeded:
            raise answer
        return answer

    async def aclose(self) -> None:
        """End all workers; a batch that one still has fails with `WorkerDied`. May be repeated."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            await run_in_thread(self._pool.end, limiter=anyio.CapacityLimiter(1))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        await self.aclose()


class _Job:
    """The items of one batch on their way through a worker."""

    def __init__(self, items: list[Any]) -> None:
        self.refused: dict[int, Exception] = {}
        self._items = items
        self._worker: Worker | None = None
        self._abandoned = False
        self._lock = threading.Lock()

    def pickled(self) -> bytes | None:
        """Return the items that can be pickled as one message, None if there are none."""
        try:
            return pickle.dumps(self._items, pickle.HIGHEST_PROTOCOL)
        except Exception:  # noqa: BLE001 - foreign code; below it is found out whose
            accepted = [
                item for index, item in enumerate(self._items) if self._accepts(index, item)
            ]
        return pickle.dumps(accepted, pickle.HIGHEST_PROTOCOL) if accepted else None

    def _accepts(self, index: int, item: Any) -> bool:
        try:
            pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # noqa: BLE001 - foreign code
            refusal = TypeError(f"item {index} cannot be sent to a worker process: {error}")
            refusal.__cause__ = error
            self.refused[index] = refusal
            return False
        return True

    def start(self, worker: Worker) -> None:
        with self._lock:
            self._worker = worker
            if self._abandoned:
                worker.kill()

    def end(self) -> None:
        with self._lock:
            if self._abandoned:
                raise EOFError
            self._worker = None

    def abandon(self) -> None:
        """Kill the worker: nobody waits for it any more."""
        with self._lock:
            self._abandoned = True
            if self._worker is not None:
                self._worker.kill()
