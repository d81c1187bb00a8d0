"""``ui``: the page, served to whoever got its address."""

from __future__ import annotations

import ipaddress
import socket
import threading
import webbrowser
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from microbatch.durable import DurableQueue
from microbatch.durable.inspection import Inspection

from ._arguments import whole_from
from ._command import DONE, WRONG_USE, Command, CommandEnd
from ._looping import run_in_loop

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from ._console import Console


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="the queues' SQLite files")
    parser.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1", help="where to listen (127.0.0.1)"
    )
    parser.add_argument(
        "--port",
        metavar="N",
        type=whole_from(0, 65_535),
        default=0,
        help="the port; by default a free one",
    )
    parser.add_argument("--read-only", action="store_true", help="nobody may act")
    parser.add_argument("--open", action="store_true", help="open a browser")
    parser.add_argument(
        "--allow-remote",
        action="store_true",
        help="listen where other machines can ask too; nothing is encrypted",
    )


def _run(args: argparse.Namespace, console: Console) -> int:
    try:
        from microbatch.http import QueuePage  # noqa: PLC0415 - of an extra that the other commands do without

        from . import _gate, _page_server  # noqa: PLC0415
    except ImportError as error:
        message = f"the page needs {error.name}: pip install 'microbatch[ui]'"
        raise CommandEnd(message, WRONG_USE) from error
    family, remote = _family_of(args.host, allowed=args.allow_remote)
    queues = _queues_in(args.files, console)
    page = QueuePage(queues, authorize=lambda _: "act", read_only=args.read_only)
    with _listen(family, args.host, args.port) as listener:
        gate = _gate.Gate(page, args.host, listener.getsockname()[1], remote=remote)
        server = _page_server.PageServer(gate, page)

        async def serve() -> None:
            async with AsyncExitStack() as stack:
                for queue in queues:
                    await stack.enter_async_context(queue)
                console.line(gate.address)
                console.flush()
                if args.open:
                    browser = threading.Thread(
                        target=webbrowser.open, args=(gate.address,), daemon=True
                    )
                    browser.start()
                await server.run_at(listener)
                for queue in queues:
                    await queue.aclose(0)

        try:
            run_in_loop(serve)
        finally:
            server.ended()
    return DONE


def _queues_in(files: Sequence[str], console: Console) -> list[DurableQueue[Any, Any]]:
    """Return all queues of files, not open yet.

    Raises:
        CommandEnd: If there is none, or a path can be no file's.
        QueueUnavailable: If a file cannot be read.
    """
    names: dict[Any, list[str]] = {}
    for file in files:
        try:
            with Inspection(file, console.note) as inspection:
                names[inspection.path] = list(inspection.queues())
        except ValueError as error:
            raise CommandEnd(str(error), WRONG_USE) from error
    queues = [
        DurableQueue(path, item_type=Any, queue=name, telemetry=False)
        for path, found in names.items()
        for name in found
    ]
    if not queues:
        raise CommandEnd(f"there is no queue in {', '.join(map(str, names))} yet", WRONG_USE)
    return queues


def _family_of(host: str, *, allowed: bool) -> tuple[Any, bool]:
    """Return which kind of address a host has, and whether other machines can reach it.

    Raises:
        CommandEnd: If there is no such host, or they can, and may not.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:  # no text that can be a name is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise CommandEnd(f"--host {host}: {reason}", WRONG_USE) from error
    family, _, _, _, (address, *_) = found[0]
    remote = not ipaddress.ip_address(str(address).partition("%")[0]).is_loopback
    if remote and not allowed:
        message = (
            f"--host {host} can be reached from other machines, and nothing is encrypted: "
            "if that is meant, add --allow-remote"
        )
        raise CommandEnd(message, WRONG_USE)
    return family, remote


def _listen(family: Any, host: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise CommandEnd(
            f"cannot listen at {host} port {port}: {error.strerror}", WRONG_USE
        ) from error
    return listener


COMMANDS = (
    Command(
        name="ui",
        summary="Serve a page to look into queues and to mend them.",
        details=(
            "The first line on stdout is the page's address, with a token that opens it once. "
            "It ends with Ctrl-C."
        ),
        example="microbatch ui orders.db",
        arguments=_arguments,
        run=_run,
        json=False,
    ),
)
