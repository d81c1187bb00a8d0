"""Rows out of pipes: as soon as they are there, and gone at once when nobody wants more."""

from __future__ import annotations

import contextlib
import gzip
import os
import pty
import sys
import threading
import time
import traceback
import tty
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from microbatch._io import reading
from microbatch._io.reading import Input
from microbatch.files import read_rows
from microbatch.streaming import map_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


pytestmark = [pytest.mark.anyio, pytest.mark.real_time, pytest.mark.timeout(180)]

#: Seconds in which what must come at once, or end at once, has come on the busiest machine.
SOON = 60


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[Path, Callable[[bytes], None]]]:
    """A named pipe and what writes to it; the writer stays open until the test ends."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)  # it opens without a reader
    yield path, lambda data: os.write(descriptor, data) and None
    os.close(descriptor)


def times_open(path: Path) -> int:
    """Return how often this process has a file open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += entry.readlink() == path
    return found


def at_work() -> list[str]:
    """Return the functions that read files in other threads at this moment."""
    return [
        frame.f_code.co_qualname
        for thread, top in sys._current_frames().items()
        if thread != threading.get_ident()
        for frame, _ in traceback.walk_stack(top)
        if frame.f_code.co_filename == reading.__file__
    ]


PIECES = {
    "csv": [b"a\n1\n", b"2\n3", b"4\n"],
    "json": [b"[1,", b"2 ,3", b"4 ]"],
    "ndjson": [b"1\n", b"2\n3", b"4\n"],
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", PIECES)
async def test_rows_come_as_soon_as_they_are_there(kind: str, zipped: bool, pipe: Any) -> None:
    """Not when 256 KiB of them are, and not when the writer ends; what is not whole waits for the rest."""
    path, write = pipe
    pieces = PIECES[kind]
    if zipped:
        kind += ".gz"
        pieces = [gzip.compress(piece) for piece in pieces]
    found: list[Any] = []
    with anyio.fail_after(SOON):
        write(pieces[0])
        async with contextlib.aclosing(read_rows(path, format=kind)) as rows:
            async for outcome in rows:
                value = outcome.value
                found.append(int(value["a"]) if isinstance(value, dict) else value)
                if found[-1] == 34:
                    break
                write(pieces[len(found)])
    assert found == [1, 2, 34]


@pytest.mark.parametrize("kind", [*PIECES, "csv.gz"])
async def test_a_quiet_pipe_holds_nobody(kind: str, pipe: Any) -> None:
    """A timeout ends the wait at once, leaves no thread behind and closes the pipe."""
    path, _ = pipe
    began = time.monotonic()
    with anyio.move_on_after(0.05) as scope:
        async for _ in read_rows(path, format=kind):
            pass
    assert scope.cancelled_caught
    assert time.monotonic() - began < SOON
    assert at_work() == []
    assert times_open(path) == 1  # by the test itself


async def test_a_pipe_that_nobody_writes_to_yet_is_waited_for(tmp_path: Path) -> None:
    """Its opening stops nobody. It ends when its writers have gone; a last line needs no line end."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    found: list[Any] = []

    async def read() -> None:
        found.extend([outcome.value async for outcome in read_rows(path, format="ndjson")])

    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            while not times_open(path):  # noqa: ASYNC110 - only the system knows
                await anyio.sleep(0.001)
            await anyio.sleep(0.001)
            await anyio.to_thread.run_sync(path.write_bytes, b"1\n2")
    assert found == [1, 2]


async def test_a_pipe_that_another_reader_emptied_has_not_ended(pipe: Any) -> None:
    """It was readable a moment ago, and is not."""
    path, write = pipe
    file = Input(path, zipped=False)
    assert (file.read(), file.ended) == (b"", False)
    write(b"1\n")
    assert (file.read(), file.ended) == (b"1\n", False)
    file.close()


async def test_a_terminal_gives_its_lines_as_they_are_typed() -> None:
    """It may be quiet for as long as a pipe."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    try:
        os.write(ours, b"1\n")
        with anyio.fail_after(SOON):
            async with contextlib.aclosing(read_rows(os.ttyname(theirs), format="ndjson")) as rows:
                async for outcome in rows:
                    if outcome.value == 2:
                        break
                    os.write(ours, b"2\n")
        assert outcome.value == 2
    finally:
        os.close(ours)
        os.close(theirs)


async def test_a_stream_over_a_quiet_pipe_hands_rows_on(pipe: Any) -> None:
    """With ``max_wait`` they reach the handler while the pipe is silent, and leaving ends it at once."""
    path, write = pipe
    write(b"1\n2\n")

    async def handler(rows: list[int]) -> list[int]:
        return [row * 10 for row in rows]

    found: list[Any] = []
    with anyio.fail_after(SOON):
        stream = map_batches(read_rows(path, format="ndjson"), handler, max_wait=0.02)
        async with stream as outcomes:
            async for outcome in outcomes:
                found.append(outcome.value)
                if len(found) == 3:
                    break
                if len(found) == 2:
                    write(b"3\n")
    assert found == [10, 20, 30]
