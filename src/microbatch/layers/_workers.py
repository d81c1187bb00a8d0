"""Worker processes for `in_process`: spawned by ``multiprocessing``, one pipe each, replaced when they die.

``multiprocessing`` finds the main program again (``python -m package`` included) and ends its children with
this process. Its pools, and those of ``concurrent.futures``, are not used: there a worker that dies takes
the batches of all others with it. ``anyio.to_process`` is not used either: its workers cannot import a main
program that has relative imports, and send what a handler prints or logs to nowhere.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

#: A dying process is gone within milliseconds; one that the kernel holds longer is left to it.
_SECONDS_TO_DIE = 5.0

_spawn = multiprocessing.get_context("spawn")  # a fork would copy held locks and open files


class Died(Exception):
    """A worker has died; the only argument says of what."""


class Worker:
    """One worker process, and the pipe to it."""

    def __init__(self, handler: bytes) -> None:
        self._pipe, theirs = _spawn.Pipe()
        with theirs:
            # A daemon: it ends with this program, even if nobody closes the handler.
            self._process = _spawn.Process(target=_serve, args=(theirs, handler), daemon=True)
            self._process.start()

    def receive(self) -> tuple[bool, Any]:
        """Return the worker's next answer: whether it succeeded, and the result or the exception.

        Raises:
            EOFError, OSError: If it has died.
        """
        succeeded, answer = pickle.loads(self._pipe.recv_bytes())  # noqa: S301 - our own worker's
        return succeeded, answer

    def ask(self, payload: bytes) -> tuple[bool, Any]:
        """Send a batch and return the answer to it; raises what `receive` raises."""
        self._pipe.send_bytes(payload)
        return self.receive()

    def is_alive(self) -> bool:
        # Not Process.is_alive: it waits for the child's exit code, which the program may have taken.
        return not wait([self._process.sentinel], 0)

    def kill(self) -> None:
        self._process.kill()

    def end(self, *, died: bool = False) -> str:
        """Kill the process if it lives, let go of it, and return what it died of.

        One that has ``died`` may have closed its pipe a moment before it ends with its own code.
        """
        if died:
            self._process.join(_SECONDS_TO_DIE)
        self._process.kill()
        self._process.join(_SECONDS_TO_DIE)
        code = self._process.exitcode
        self._pipe.close()
        if code is None:  # the program waits for all its children, or the kernel holds this one
            return "an unknown cause"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class Pool:
    """The workers of one handler in this process. Used by several threads."""

    def __init__(self, handler: bytes, name: str) -> None:
        self._handler = handler
        self._name = name
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._lock = threading.Lock()
        self._ended = False
        self._process_id = os.getpid()

    def is_inherited(self) -> bool:
        """Tell whether this is a copy made by a fork: those workers are the parent's."""
        return self._process_id != os.getpid()

    def take(self, begun: Callable[[Worker], None] = lambda _: None) -> Worker:
        """Return an idle worker that lives, or a new one.

        Args:
            begun: Gets a new one as soon as it starts: for who may have to kill it before it is ready.

        Raises:
            Died: If the new one dies while it starts.
            TypeError: If it cannot import the handler.
        """
        while True:
            with self._lock:
                if not self._idle:
                    break
                worker = self._idle.pop()
                self._busy.add(worker)
            if worker.is_alive():
                return worker
            self.discard(worker)
        worker = Worker(self._handler)
        with self._lock:
            self._busy.add(worker)
            if self._ended:
                worker.kill()
        begun(worker)
        try:
            succeeded, answer = worker.receive()
        except (EOFError, OSError):
            raise Died(self.discard(worker, died=True)) from None
        if not succeeded:
            self.discard(worker)
            raise TypeError(
                f"a worker process cannot import the handler {self._name!r}: {answer}"
            ) from answer
        return worker

    def give_back(self, worker: Worker) -> None:
        with self._lock:
            if not self._ended:
                self._busy.discard(worker)
                self._idle.append(worker)
                return
        self.discard(worker)

    def discard(self, worker: Worker, *, died: bool = False) -> str:
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


def _serve(pipe: Connection, function: bytes) -> None:
    """Say whether the handler is there, then answer batches until the other end has gone.

    Runs in the worker process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; then our pipe ends
    with contextlib.suppress(EOFError, OSError):
        handler = problem = None
        try:
            handler = pickle.loads(function)  # noqa: S301 - our own program's
        except Exception as error:  # noqa: BLE001 - whatever an import raises
            problem = error
        pipe.send_bytes(_pickled(handler is not None, problem))
        while handler is not None:
            payload = pipe.recv_bytes()
            try:
                results = handler(pickle.loads(payload))  # noqa: S301 - our own program's
            except Exception as error:  # noqa: BLE001 - it travels to who waits for it
                note = "".join(traceback.format_exception(error))
                error.add_note(f"in a worker process: {note}")
                pipe.send_bytes(_pickled(False, error))
            else:
                pipe.send_bytes(_pickled(True, results))


def _pickled(succeeded: bool, answer: Any) -> bytes:
    try:
        if not succeeded:
            answer = _portable(answer)
        elif type(answer) in {list, tuple}:
            answer = [_portable(r) if isinstance(r, Exception) else r for r in answer]
        return pickle.dumps((succeeded, answer), pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001 - pickling runs foreign code
        reason = TypeError(f"the handler's results cannot be sent from the worker process: {error}")
        return pickle.dumps((False, reason), pickle.HIGHEST_PROTOCOL)


def _portable(error: Exception) -> Exception:
    """Return the error if it survives the way to the parent, else one that says what it was."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever its class does
        return RuntimeError(
            f"{type(error).__name__} in a worker process, which cannot be pickled: {error}"
        )
    return error
