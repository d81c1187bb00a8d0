"""What runs in a worker process of ``in_process``: it answers requests until its input is closed.

Run as a script it imports nothing but the standard library, so that workers start fast. Requests
and answers are pickles between two ends of one program, on pipes that nobody else has.
"""

from __future__ import annotations

import io
import os
import pickle
import runpy
import signal
import sys
import traceback
from types import ModuleType
from typing import Any, BinaryIO

#: What a worker needs before its first batch: the import path, the main module and the handler.
Setup = tuple[list[str], "MainModule", bytes]
#: How the parent's main module can be imported: by a name, from a file, or not at all.
MainModule = tuple[str | None, str | None]

#: The name that ``multiprocessing`` too gives to a main module that is imported a second time.
_SECOND_MAIN = "__mp_main__"
#: True while a worker imports its parent's main module, which must not start workers then.
importing_main = False


def send(pipe: BinaryIO, payload: bytes) -> None:
    """Write one message: its length in 8 bytes, and itself."""
    pipe.write(len(payload).to_bytes(8, "big"))
    pipe.write(payload)
    pipe.flush()


def receive(pipe: BinaryIO) -> bytes:
    """Read one message.

    Raises:
        EOFError: If the other end has gone, in the middle of a message or before it.
    """
    length = int.from_bytes(_read(pipe, 8), "big")
    return _read(pipe, length)


def _read(pipe: BinaryIO, count: int) -> bytes:
    read = pipe.read(count)
    if len(read) < count:
        raise EOFError
    return read


class _Unpickler(pickle.Unpickler):
    """Finds what belongs to the parent's main module, whatever name it has here."""

    def __init__(self, payload: bytes, main: MainModule) -> None:
        super().__init__(io.BytesIO(payload))
        self._main = main

    def find_class(self, module: str, name: str) -> Any:
        if module not in {"__main__", _SECOND_MAIN}:
            return super().find_class(module, name)
        if self._main != (None, None):
            import_main(self._main)
        return super().find_class("__main__", name)


def load(payload: bytes, main: MainModule = (None, None)) -> Any:
    """Unpickle a message from the other end.

    Args:
        payload: The message.
        main: In a worker: where its parent's main module is, imported when something of it is
            needed.
    """
    return _Unpickler(payload, main).load()


def import_main(main: MainModule) -> None:
    """Import the parent's main module, once, so that what it defines is found in ``__main__``."""
    global importing_main  # noqa: PLW0603 - it is about this process
    if _SECOND_MAIN in sys.modules:
        return
    name, path = main
    importing_main = True
    try:
        if name is not None:
            found = runpy.run_module(name, run_name=_SECOND_MAIN, alter_sys=True)
        else:
            found = runpy.run_path(str(path), run_name=_SECOND_MAIN)
    finally:
        importing_main = False
    module = ModuleType(_SECOND_MAIN)
    module.__dict__.update(found)
    sys.modules["__main__"] = sys.modules[_SECOND_MAIN] = module


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Take the setup, then answer batches until the other end has gone."""
    main: MainModule = (None, None)
    handler: Any = None
    try:
        while True:
            payload = receive(requests)
            try:
                if handler is None:
                    paths, main, function = load(payload)
                    sys.path[:] = paths
                    handler, answer = load(function, main), None
                else:
                    answer = handler(load(payload, main))
            except Exception as error:  # noqa: BLE001 - it travels to who waits for it
                note = "".join(traceback.format_exception(error))
                error.add_note(f"in a worker process: {note}")
                send(answers, _pickled(False, error))
            else:
                send(answers, _pickled(True, answer))
    except (EOFError, BrokenPipeError):
        return


def _pickled(succeeded: bool, answer: Any) -> bytes:
    try:
        if succeeded:
            if type(answer) in {list, tuple}:
                answer = [_portable(r) if isinstance(r, Exception) else r for r in answer]
        else:
            answer = _portable(answer)
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


if __name__ == "__main__":  # pragma: no cover - in the worker process, which tests see from outside
    # The handler may print, and read from its standard input: that must not meet the messages.
    _requests, _answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; then our input ends
    sys.modules["microbatch.layers._worker"] = sys.modules["__main__"]
    serve(_requests, _answers)
