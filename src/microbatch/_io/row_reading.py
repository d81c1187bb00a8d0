"""The rows of a file, read in a worker thread, a block at a time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from microbatch._loops.calling import run_in_thread

from .reading import Input

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from microbatch._pure.report import Outcome

    from .finding import Parser


async def rows_of_file(
    path: Path,
    parser: Parser,
    *,
    zipped: bool | None,
    told: Callable[[int], object] = lambda _: None,
) -> AsyncGenerator[Outcome[Any], None]:
    """Yield a file's rows as outcomes.

    Args:
        path: The file.
        parser: Finds the rows.
        zipped: Whether it is gzip's; None: its first bytes tell.
        told: Told how many bytes have been read, before the rows that were found in them.

    Raises:
        OSError: If it cannot be read, or, after what is whole, if its gzip is damaged.
        EOFError: After what is whole, if its gzip breaks off.
        ValueError: What ends the parser's reading.
    """
    in_thread = partial(run_in_thread, limiter=anyio.CapacityLimiter(1))
    file = await in_thread(partial(Input, path, zipped=zipped))

    def next_rows() -> list[Outcome[Any]]:
        data = file.read()
        return parser.feed(data, final=file.ended)

    try:
        while not file.ended:
            await file.wait()
            found = await in_thread(next_rows)
            told(file.position)
            for outcome in found:
                yield outcome
            if parser.error is not None:
                raise parser.error
    finally:
        file.close()
