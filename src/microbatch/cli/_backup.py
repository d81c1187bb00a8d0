"""``backup``: a consistent copy while everything runs."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from ._arguments import add_file, keep_apart
from ._command import DONE, WRONG_USE, Command, CommandEnd
from ._live import ProgressBar
from ._opening import inspect
from ._wording import bytes_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ._console import Console


def _run_backup(args: argparse.Namespace, console: Console) -> int:
    keep_apart("TARGET", args.target, args.file)
    target = Path(os.path.realpath(args.target))
    if target.is_dir():
        raise CommandEnd(f"{args.target} is a directory: add the file's name", WRONG_USE)
    if target.exists():
        message = f"{args.target} is there already: give another name, or remove it before"
        raise CommandEnd(message, WRONG_USE)
    for suffix in ("-wal", "-journal"):
        if target.with_name(target.name + suffix).exists():
            # SQLite would write into the copy what was another file's.
            message = f"{args.target}{suffix} is there, the rest of another file of that name: remove it before"
            raise CommandEnd(message, WRONG_USE)
    with inspect(args, console) as inspection, _empty_file(target) as parts:
        with ProgressBar(console, "backup") as bar:
            inspection.backup(parts, lambda left, pages: bar.show(pages - left, total=pages))
        size = parts.stat().st_size
    if console.json:
        console.object({"target": str(target), "bytes": size})
    else:
        console.line(f"{bytes_text(size)} copied to {args.target}")
    return DONE


@contextlib.contextmanager
def _empty_file(target: Path) -> Iterator[Path]:
    """Give an empty file, readable by its owner only, which takes the target's name in the end."""
    parts = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.part")
    try:
        os.close(os.open(parts, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            yield parts
            descriptor = os.open(parts, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            _take_name(parts, target)
        finally:
            for suffix in ("", "-wal", "-shm", "-journal"):
                parts.with_name(parts.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        message = f"{target} cannot be written: {error.strerror or error}"
        raise CommandEnd(message, WRONG_USE) from error


def _take_name(parts: Path, target: Path) -> None:
    """Give a file its name, which is not taken from him who took it meanwhile."""
    try:
        os.link(parts, target)
    except FileExistsError:
        raise
    except (
        OSError
    ):  # a stick's file system, say, has no links: there an empty file holds the name until then
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        parts.replace(target)


def _backup_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser)
    parser.add_argument("target", metavar="TARGET", help="where the copy goes; must not be there")


COMMANDS = (
    Command(
        "backup",
        "Copy a file, consistent, while everything runs.",
        "microbatch backup shop.db copy.db",
        _backup_arguments,
        _run_backup,
        "It is the file as it was at one moment, whole or not at all, readable by its owner only. To restore "
        "it stop the workers, put it in the file's place, and remove the old one's -wal and -shm.",
    ),
)
