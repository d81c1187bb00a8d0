"""Plain handlers at the top level of a module, as worker processes need them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def square(items: list[int]) -> list[int]:
    return [item * item for item in items]


def process_ids(items: list[Any]) -> list[int]:
    return [os.getpid()] * len(items)


def slowly(items: list[float]) -> list[int]:
    time.sleep(max(items))
    return [os.getpid()] * len(items)


def store(items: list[Any]) -> None:
    """Return nothing."""


def kill_itself(items: list[str]) -> list[int]:
    if items[0] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if items[0] == "exit":
        sys.exit(3)
    return [os.getpid()] * len(items)


def sleep_and_tell(items: list[str]) -> list[int]:
    """Write the process id into the file named by the first item, then sleep for long."""
    Path(items[0]).write_text(str(os.getpid()))
    time.sleep(60)
    return [0] * len(items)


def noisy(items: list[int]) -> list[int]:
    print("to standard output")
    sys.stdout.flush()
    os.write(1, b"straight to descriptor 1\n")
    assert sys.stdin.read() == ""
    return items


class StubbornError(Exception):
    """Cannot be pickled: its __init__ asks for more than its args keep."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Unloadable:
    """Can be pickled, but not loaded."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


def errors(items: list[str]) -> list[Any]:
    if items[0] == "raise":
        raise KeyError("whole")
    if items[0] == "stubborn":
        raise StubbornError(1, 2)
    if items[0] == "lambda":
        return [lambda: 1]
    if items[0] == "short":
        return []
    return [StubbornError(3, 4) if item == "own" else ValueError(item) for item in items]


def mixed(items: list[Any]) -> tuple[Any, ...]:
    return tuple(items)


def unloadable(items: list[Any]) -> list[Any]:
    return [Unloadable() for _ in items]


class _DiesOnImport:
    """A handler whose loading ends the process that loads it."""

    __name__ = __qualname__ = "dies_on_import"

    def __call__(self, items: list[int]) -> list[int]:
        return items

    def __reduce__(self) -> Any:
        return os._exit, (9,)


dies_on_import = _DiesOnImport()


class HangsOnImport(_DiesOnImport):
    """A handler whose loading tells which process loads it, and takes ten minutes."""

    __name__ = __qualname__ = "hangs_on_import"

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return _tell_and_hang, (self.path,)


def _tell_and_hang(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)
