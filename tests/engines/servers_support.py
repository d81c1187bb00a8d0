"""Starting and ending servers and workers of the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Seconds that a server, or a worker, may take on a machine that is busy with other things.
PATIENCE = 120.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes], folder: Path) -> Iterator[None]:
    """End the process and remove its folder when the block is left."""
    try:
        yield
    finally:
        leads = os.getpgid(process.pid) == process.pid  # a server of several processes
        tell = os.killpg if leads else os.kill
        tell(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            tell(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until a server takes connections."""

    def listens() -> bool:
        assert process.poll() is None, log.read_text(errors="replace")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens, lambda: log.read_text(errors="replace"))


def wait_until(happens: Callable[[], bool], tell: Callable[[], str] = str) -> None:
    """Wait for what happens in another process; nothing there can set an event here."""
    end = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < end, tell()
        time.sleep(0.02)
