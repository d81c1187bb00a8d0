"""`in_process`: CPU-bound bulk work in worker processes."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, Self, cast, overload

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from microbatch._core.info import batcher_name, current_batch
from microbatch._pure import checks
from microbatch._pure.exceptions import HandlerCrashed
from microbatch._pure.handler import kind_of, name_of, results_of

from . import _worker
from ._passing import R, T, hand_over

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType


#: A dying process is gone within milliseconds; one that the kernel holds longer is left to it.
_SECONDS_TO_DIE = 5.0


class WorkerDied(HandlerCrashed):
    """The worker died, so what became of its items is unknown; the next call gets a new one.

    Attributes:
        name: The handler's name.
        kind: What the process died of: a signal such as ``"SIGKILL"``, or ``"exit code 3"``.
    """

    def __str__(self) -> str:
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
        if kind_of(handler) != "thread":
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
        self._pool = _Pool()
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
            answer = await anyio.to_thread.run_sync(
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

    def _run(self, pool: _Pool, job: _Job) -> Any:
        """Have a worker do a job; in a thread."""
        payload = job.pickled()
        if payload is None:
            return []
        worker = pool.take() or self._start(pool)
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

    def _start(self, pool: _Pool) -> _Worker:
        if _worker.importing_main:
            raise RuntimeError(
                "a worker process imports the main program, which would start workers of its own: "
                "guard what it runs by `if __name__ == '__main__':`"
            )
        worker = _Worker()
        pool.add(worker)
        setup = (sys.path, _main_module(), self._handler)
        try:
            succeeded, answer = worker.ask(pickle.dumps(setup))
        except (EOFError, OSError):
            raise WorkerDied(self.__name__, pool.discard(worker, died=True)) from None
        if not succeeded:
            pool.discard(worker)
            raise TypeError(
                f"a worker process cannot import the handler {self.__name__!r}: {answer}"
            ) from answer
        return worker

    async def aclose(self) -> None:
        """End all workers; a batch that one still has fails with `WorkerDied`. May be repeated."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._pool.end, limiter=anyio.CapacityLimiter(1))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        await self.aclose()


def _main_module() -> _worker.MainModule:
    """Return how a worker can import this program's main module, as ``multiprocessing`` does."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name, None
    file = getattr(main, "__file__", None)
    return None, None if file is None else str(Path(file).absolute())


class _Worker:
    """One worker process, and the pipes to it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, our own script
            [sys.executable, _worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._requests = cast("BinaryIO", self._process.stdin)
        self._answers = cast("BinaryIO", self._process.stdout)

    def ask(self, payload: bytes) -> tuple[bool, Any]:
        """Send a request and return whether it succeeded, and the answer.

        Raises:
            EOFError, OSError: If the process has died.
        """
        _worker.send(self._requests, payload)
        return cast("tuple[bool, Any]", _worker.load(_worker.receive(self._answers)))

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def end(self, *, died: bool = False) -> str:
        """Kill the process if it lives, let go of it, and return what it died of.

        One that has ``died`` may have closed its pipes a moment before it ends with its own code.
        """
        if died:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_SECONDS_TO_DIE)
        self._process.kill()
        try:
            code = self._process.wait(_SECONDS_TO_DIE)
        except subprocess.TimeoutExpired:  # pragma: no cover - the kernel holds it
            return "SIGKILL"
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):  # what was not written yet has nowhere to go
                pipe.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _Pool:
    """The workers of one handler in this process. Used by several threads."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._lock = threading.Lock()
        self._ended = False
        self._process_id = os.getpid()

    def is_inherited(self) -> bool:
        return self._process_id != os.getpid()

    def take(self) -> _Worker | None:
        """Return an idle worker that lives, if there is one."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                worker = self._idle.pop()
                self._busy.add(worker)
            if worker.is_alive():
                return worker
            self.discard(worker)

    def add(self, worker: _Worker) -> None:
        with self._lock:
            self._busy.add(worker)
            if self._ended:
                worker.kill()

    def give_back(self, worker: _Worker) -> None:
        with self._lock:
            if not self._ended:
                self._busy.discard(worker)
                self._idle.append(worker)
                return
        self.discard(worker)

    def discard(self, worker: _Worker, *, died: bool = False) -> str:
        """End a worker and return what it died of."""
        cause = worker.end(died=died)
        with self._lock:
            self._busy.discard(worker)
        return cause

    def end(self) -> None:
        """Kill all workers; the thread that waits for a busy one lets go of it."""
        if self.is_inherited():
            return
        with self._lock:
            self._ended = True
            idle, self._idle = self._idle, []
            for worker in self._busy:
                worker.kill()
        for worker in idle:
            worker.end()


class _Job:
    """The items of one batch on their way through a worker."""

    def __init__(self, items: list[Any]) -> None:
        self.refused: dict[int, Exception] = {}
        self._items = items
        self._worker: _Worker | None = None
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

    def start(self, worker: _Worker) -> None:
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
