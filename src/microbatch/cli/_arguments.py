"""Arguments that several commands have, and what their values may be."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from microbatch.durable._file.place import SIDE_FILES

from ._command import WRONG_USE, CommandEnd

if TYPE_CHECKING:
    from collections.abc import Callable


def add_file(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names the file."""
    parser.add_argument("file", metavar="FILE", help="the queue's SQLite file")


def add_queue(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a queue in it."""
    parser.add_argument(
        "--queue", metavar="NAME", help="which queue; needed where the file has several"
    )


def add_yes(parser: argparse.ArgumentParser) -> None:
    """Add the option that answers the question."""
    parser.add_argument("--yes", action="store_true", help="do not ask")


#: Seconds that any command waits for at most: a year. No clock of the system's takes any number.
_SECONDS_MAX = 365 * 86_400.0


def keep_apart(option: str, target: str, file: str) -> None:
    """Refuse to write over a queue's file, or over what belongs to it.

    Raises:
        CommandEnd: If the target is one of these.
    """
    own = os.path.realpath(file)
    if os.path.realpath(target) in {own, *(own + suffix for suffix in SIDE_FILES)}:
        raise CommandEnd(
            f"{option}: {target} belongs to the queue's file: give another name", WRONG_USE
        )


def seconds_from(least: float) -> Callable[[str], float]:
    """Return what reads a number of seconds of at least so many, and at most a year."""

    def seconds(text: str) -> float:
        value = float(text)
        if not (least <= value <= _SECONDS_MAX):
            message = f"must be from {least:g} to {_SECONDS_MAX:.0f}, got {text}"
            raise argparse.ArgumentTypeError(message)
        return value

    return seconds


def whole_from(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return what reads a whole number of at least, and at most, so much."""

    def number(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            allowed = f"at least {least}" if most is None else f"from {least} to {most}"
            message = f"must be {allowed}, got {text}"
            raise argparse.ArgumentTypeError(message)
        return value

    return number
