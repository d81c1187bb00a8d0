"""Servers that benchmarks and tests start, each on a port of loopback and in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

#: Seconds that a server, or a worker, may take on a machine that is busy with other things.
PATIENCE = 120.0


@contextlib.contextmanager
def kept_port():
    """A port of loopback that the system gives to nobody else meanwhile, however long a server takes to come.

    A socket has it that does not listen. A server that sets SO_REUSEADDR, as all of these do, may have it too.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield int(keeper.getsockname()[1])


def wait_until(happens, tell=str):
    """Wait for what happens in another process; nothing there can set an event here."""
    end = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < end, tell()
        time.sleep(0.02)


def wait_for_port(process, port, log):
    """Wait until a server takes connections."""

    def listens():
        assert process.poll() is None, log.read_text(errors="replace")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens, lambda: log.read_text(errors="replace"))


def unprivileged(name):
    """Whom a server runs as that is better not root, or refuses to be; nothing for who is not root."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(name)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def folder_of(name, whom):
    """Make a folder for a server; not in a test's own, whose parents are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix=f"microbatch-{name}-"))
    try:
        if whom:
            os.chown(folder, whom["user"], whom["group"])
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def ended(process, how=signal.SIGTERM):
    """End the process when the block is left."""
    try:
        yield
    finally:
        leads = os.getpgid(process.pid) == process.pid  # a server of several processes
        tell = os.killpg if leads else os.kill
        tell(process.pid, how)
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            tell(process.pid, signal.SIGKILL)
            process.wait()


def nats_program():
    return shutil.which("nats-server", path=sysconfig.get_path("scripts"))


@contextlib.contextmanager
def nats():
    """NATS with JetStream; the program comes from PyPI."""
    with folder_of("nats", {}) as folder, (folder / "log").open("wb") as log, kept_port() as port:
        process = subprocess.Popen(
            [nats_program(), "-js", "-sd", folder, "-a", "127.0.0.1", "-p", str(port)],
            stdout=log, stderr=log,
        )  # fmt: skip
        with ended(process):
            wait_for_port(process, port, folder / "log")
            yield f"nats://127.0.0.1:{port}"


def rabbit_program():
    program = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return program if program.exists() and shutil.which("epmd") else None


@contextlib.contextmanager
def rabbit():
    """RabbitMQ, with a port mapper of Erlang's own, so that none is left behind."""
    whom = unprivileged("rabbitmq")
    with (
        folder_of("rabbit", whom) as folder,
        (folder / "log").open("wb") as log,
        kept_port() as port,
        kept_port() as distribution,
        kept_port() as mapping,
    ):
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(mapping),
            "RABBITMQ_NODENAME": f"microbatch{port}@localhost", "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1", "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"), "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1",
        }  # fmt: skip
        options = {
            "cwd": folder, "env": environment, "stdout": log, "stderr": log, "start_new_session": True,
        }  # fmt: skip
        mapper = [shutil.which("epmd"), "-address", "127.0.0.1", "-port", str(mapping)]
        with ended(subprocess.Popen(mapper, **options, **whom)):
            server = subprocess.Popen([rabbit_program()], **options, **whom)
            with ended(server):
                wait_for_port(server, port, folder / "log")
                yield f"amqp://127.0.0.1:{port}/"


def redis_program():
    return shutil.which("redis-server")


@contextlib.contextmanager
def redis():
    """Redis, which keeps nothing on the disk here."""
    whom = unprivileged("nobody")
    with (
        folder_of("redis", whom) as folder,
        (folder / "log").open("wb") as log,
        kept_port() as port,
    ):
        command = [redis_program(), "--port", str(port), "--bind", "127.0.0.1"]
        process = subprocess.Popen(
            [*command, "--save", "", "--appendonly", "no"],
            cwd=folder, stdout=log, stderr=log, **whom,
        )  # fmt: skip
        with ended(process):
            wait_for_port(process, port, folder / "log")
            yield f"redis://127.0.0.1:{port}"


def postgres_programs():
    """Return the folder with initdb and postgres, or None; Debian keeps them out of PATH."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists():
            return folder
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@contextlib.contextmanager
def postgres(*settings):
    """PostgreSQL with its own defaults, but for `settings`: ``"name=value"``, each."""
    programs, whom = postgres_programs(), unprivileged("nobody")
    with (
        folder_of("postgres", whom) as folder,
        (folder / "log").open("wb") as log,
        kept_port() as port,
    ):
        subprocess.run(
            [programs / "initdb", "-D", folder / "data", "-U", "example", "-A", "trust", "-E", "UTF8",
             "--locale=C", "-N"],
            cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE, **whom,
        )  # fmt: skip
        options = ["listen_addresses=127.0.0.1", *settings]
        process = subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", "-k", folder, "-p", str(port),
             *[part for option in options for part in ("-c", option)]],
            cwd=folder, stdout=log, stderr=log, **whom,
        )  # fmt: skip
        said = folder / "log"

        def ready():
            text = said.read_text(errors="replace")
            assert process.poll() is None, text
            return "ready to accept connections" in text

        with ended(process, signal.SIGINT):  # disconnects everybody and stops in order
            wait_until(ready, lambda: said.read_text(errors="replace"))
            yield f"postgresql://example@127.0.0.1:{port}/postgres"
