"""Worker processes of one test, and what they write down of what they handled."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from support import ENVIRONMENT

from benchmarks.servers import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKER = Path(__file__).with_name("worker.py")


class Crowd:
    """The workers of one test.

    Args:
        folder: Where their files go.
        program: What they run.
        job: What each of them is told, but for the log.
    """

    def __init__(self, folder: Path, program: Path = WORKER, **job: Any) -> None:
        self.program = program
        self.log = folder / "handled"
        self.folder = folder
        self.job = job
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, **job: Any) -> subprocess.Popen[bytes]:
        """Start one more worker."""
        number = len(self.processes)
        told = self.job | {
            "log": str(self.log), "consumer": f"c{number}", "ready": str(self.folder / f"ready-{number}"),
        } | job  # fmt: skip
        with (self.folder / f"said-{number}").open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, str(self.program), msgspec.json.encode(told).decode()],
                stdout=said, stderr=said, env=ENVIRONMENT,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def said(self) -> str:
        """Return what the workers wrote to their own output."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("said-*")))

    def calls(self) -> list[list[int]]:
        """Return the items of each handler call that has ended."""
        return [numbers for what, numbers in self._lines() if not what]

    def hung(self) -> set[int]:
        """Return the items of handler calls that do not end."""
        return {item for what, numbers in self._lines() if what == "hangs" for item in numbers}

    def taken(self) -> set[int]:
        """Return the items that came to a batcher, for the workers that tell it."""
        return {item for what, numbers in self._lines() if what == "takes" for item in numbers}

    def _lines(self) -> Iterator[tuple[str, list[int]]]:
        text = self.log.read_text() if self.log.exists() else ""
        for line in text.split("\n")[:-1]:  # the last one may be half written
            what = next((word for word in ("hangs", "takes") if line.startswith(word)), "")
            yield what, [int(word) for word in line.removeprefix(what).split()]

    def handled(self) -> Counter[int]:
        """Return how often each item was handled."""
        return Counter(item for call in self.calls() for item in call)

    def wait_for(self, count: int) -> None:
        """Wait until so many items have been handled once at least."""
        wait_until(lambda: self._alive() and len(self.handled()) >= count, self.said)

    def wait_for_these(self, items: set[int]) -> None:
        """Wait until these have been handled."""
        wait_until(lambda: self._alive() and items <= self.handled().keys(), self.said)

    def wait_for_hung(self, count: int) -> None:
        """Wait until so many items are in calls that do not end."""
        wait_until(lambda: self._alive() and len(self.hung()) >= count, self.said)

    def _alive(self) -> bool:
        living = [process for process in self.processes if process.poll() is None]
        assert living, self.said()
        return True

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End a worker in order; it has to. Before it is ready the signal would end it like any program."""
        ready = self.folder / f"ready-{self.processes.index(process)}"
        wait_until(lambda: ready.exists() or process.poll() is not None, self.said)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0, self.said()


@contextlib.contextmanager
def crowd(folder: Path, program: Path = WORKER, **job: Any) -> Iterator[Crowd]:
    """Give a test its workers, and kill those that it leaves."""
    workers = Crowd(folder, program, **job)
    try:
        yield workers
    finally:
        for process in workers.processes:
            if process.poll() is None:
                workers.kill(process)
