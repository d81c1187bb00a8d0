"""Arguments that several commands have, and what their values may be."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

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


def seconds_from(least: float) -> Callable[[str], float]:
    """Return what reads a number of seconds of at least so many."""

    def seconds(text: str) -> float:
        value = float(text)
        if not (least <= value < math.inf):
            message = f"must be at least {least:g} and finite, got {text}"
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
