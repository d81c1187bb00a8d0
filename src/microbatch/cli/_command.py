"""What a subcommand is, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from ._console import Console

#: Exit codes. What is interrupted ends with 128 and the signal's number, as programs do.
DONE, FOUND, WRONG_USE, NO_FILE = 0, 1, 2, 3


class CommandEnd(Exception):
    """The command ends here, with one line for stderr.

    Args:
        message: What is wrong and what to do.
        code: The exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        name: What it is called by.
        summary: What it does, in a line.
        example: A call of it that works in a folder with the files that the examples name.
        arguments: Adds its arguments; ``--json`` is there already.
        run: Does it; gets the parsed arguments and returns the exit code.
        details: More about it, in sentences.
        json: Whether it has ``--json``.
    """

    name: str
    summary: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], int]
    details: str = ""
    json: bool = True
