"""Consumers in other processes, and forked children, for the tests of who lives."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import traceback
import warnings
from typing import TYPE_CHECKING

from microbatch.durable._file.records import ConsumerRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Takes a byte, says who it is, and then does what it is told, line by line.
PROGRAM = """
import os, pathlib, sys
from microbatch.durable._file.records import ConsumerRow
from microbatch.durable._life.alive import Presence, birth_of
path, byte = pathlib.Path(sys.argv[1]), int(sys.argv[2])
presence = Presence(path)
print(presence.take(byte), os.getpid(), birth_of(os.getpid()), flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
"""


class Other:
    """A consumer in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], byte: int) -> None:
        self.process = process
        self._byte = byte
        self.identity, pid, self.born = self._line().split()
        self.pid = int(pid)

    @property
    def row(self) -> ConsumerRow:
        return ConsumerRow(self._byte, 1, self.identity, self.pid, self.born)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, expression: str) -> str:
        """Return what an expression is there."""
        assert self.process.stdin is not None
        print(expression, file=self.process.stdin, flush=True)
        return self._line()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def other_process(path: Path, byte: int, *before: str) -> Iterator[Other]:
    """Run a consumer, by a command in front of it if there is one."""
    with subprocess.Popen(
        [*before, sys.executable, "-c", PROGRAM, path, str(byte)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Other(process, byte)
        finally:
            process.kill()


def in_child(function: Callable[[], object]) -> bool:
    """Run a function in a forked child; return whether it returned True there."""
    with warnings.catch_warnings():
        # Python warns of forking beside other threads, which is what is tested here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        good = False
        try:
            good = function() is True
        except BaseException:
            traceback.print_exc()
        os._exit(0 if good else 1)
    return os.waitpid(child, 0)[1] == 0
