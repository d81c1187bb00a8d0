"""The command: its parser, and how it ends."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microbatch._pure.version import __version__
from microbatch.durable import QueueUnavailable
from microbatch.errors import MicrobatchError

from ._command import FOUND, NO_FILE, WRONG_USE, Command, CommandEnd
from ._console import Console
from ._table import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_EXIT_CODES = (
    "Exit codes: 0 done; 1 items failed, an id is unknown, or doctor found something; 2 wrong use, or a "
    "question that was not answered; 3 the file is missing, is no queue's, is too new, or is locked."
)


#: Seconds that calls of a handler get which still run when all else has ended: they cannot be cancelled.
LEFT_FOR_CALLS = 5.0


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help that is equally wide everywhere: it stands in the reference too."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="microbatch",
        description="Look into a queue of microbatch, mend it, import a file, measure a handler.",
        epilog=_filled(_EXIT_CODES),
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"microbatch {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        _add_command(commands, command)
    return parser


def _add_command(commands: Any, command: Command) -> None:
    details = [_filled(command.summary), _filled(command.details)]
    parser = commands.add_parser(
        command.name,
        help=command.summary[0].lower() + command.summary[1:].rstrip("."),
        description="\n\n".join(filter(None, details)),
        epilog=f"example:\n  $ {command.example}",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    command.arguments(parser)
    if command.json:
        parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(command=command)


def _filled(text: str) -> str:
    import textwrap  # noqa: PLC0415 - for the help alone

    return textwrap.fill(text, 100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command ``microbatch``.

    Args:
        arguments: What stands behind its name; by default those of this process.

    Returns:
        The exit code: 0 done; 1 items failed, an id is unknown, or doctor found something; 2 wrong use, or a
        question that was not answered; 3 the file is missing, is no queue's, is too new, or is locked; what
        was interrupted gives 128 and the signal's number.

    Raises:
        SystemExit: For ``--help``, ``--version`` and arguments that cannot be read.
    """
    with _streams():
        before = set(threading.enumerate())
        code = _main(arguments)
        if arguments is None:  # else it is not this process's end
            _part_with_threads(before, code)
        return code


def _main(arguments: Sequence[str] | None) -> int:
    args = make_parser().parse_args(arguments)
    console = Console(json=getattr(args, "json", False))
    command: Command = args.command
    by = signal.SIGINT

    def note_term() -> None:
        nonlocal by
        by = signal.SIGTERM

    try:
        with _ended_by_term(note_term):
            code = command.run(args, console)
            console.flush()
            return code
    except CommandEnd as end:
        return _ended_with(console, str(end), end.code)
    except MicrobatchError as error:
        # Else an unknown id, outcomes past their time, a key of somebody else's.
        code = NO_FILE if isinstance(error, QueueUnavailable) else FOUND
        return _ended_with(console, str(error), code)
    except BrokenPipeError:
        return _left_alone()
    except KeyboardInterrupt:
        return _ended_with(console, "interrupted", 128 + by)
    except SystemExit as end:  # with 0 it would look as if all had gone well
        return _ended_with(console, f"the handler ended it: SystemExit: {end}", FOUND)


def _ended_with(console: Console, message: str, code: int) -> int:
    with suppress(OSError):  # nobody listens any more
        console.note(message)
    try:
        sys.stdout.flush()
    except OSError:
        _left_alone()
    return code


@contextmanager
def _streams() -> Iterator[None]:
    """Stand in for streams that are closed, as a daemon's are: else the next file opened would be one."""
    with ExitStack() as stack:
        for name, redirect in (("stdout", redirect_stdout), ("stderr", redirect_stderr)):
            if getattr(sys, name) is None:
                nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(redirect(nowhere))
        yield


def _part_with_threads(before: set[threading.Thread], code: int) -> None:
    """Wait for calls of a handler that still run in threads, as the interpreter would, but not for ever."""
    left = [one for one in threading.enumerate() if one not in before and not one.daemon]
    until = time.monotonic() + LEFT_FOR_CALLS
    try:
        for one in left:
            one.join(max(0.0, until - time.monotonic()))
        if not any(one.is_alive() for one in left):
            return
    except KeyboardInterrupt:
        pass
    with suppress(OSError):
        sys.stderr.write("microbatch: a call of the handler does not end: cut off\n")
        sys.stderr.flush()
        sys.stdout.flush()
    os._exit(code)


def _left_alone() -> int:
    """End as a program does whose reader has gone: what it wanted to see it has seen."""
    # The interpreter flushes what is left at its end, and would complain.
    with suppress(OSError, ValueError):
        number = sys.stdout.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return 0


@contextmanager
def _ended_by_term(note: Callable[[], object]) -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does: everything is closed, and half a file is removed."""

    def interrupt(*_: object) -> None:
        note()
        # A shell starts what runs in its background with Ctrl-C ignored; SIGTERM ends that too.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            raise KeyboardInterrupt
        # An event loop takes this one for a reason to cancel what runs, and to wait until it has ended.
        signal.raise_signal(signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


__all__ = ["WRONG_USE", "main", "make_parser"]
