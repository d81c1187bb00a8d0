"""Views that change in place on a terminal, and are lines one after the other elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._console import Console


class LiveView:
    """Shows a text that changes; enter it to begin.

    Args:
        console: Where to.
        on: Whether it changes: else it is shown once, as any other text.
    """

    def __init__(self, console: Console, *, on: bool) -> None:
        self._console = console
        self._on = on
        self._live: Any = None
        self._shown = 0

    def __enter__(self) -> Self:
        rich = self._console.rich(sys.stdout) if self._on and not self._console.json else None
        if (
            rich is not None and not rich.is_dumb_terminal
        ):  # such a one shows nothing before the end
            from rich.live import Live  # noqa: PLC0415 - of an extra

            self._live = Live(console=rich, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, lines: Sequence[str]) -> None:
        """Show these lines in place of the ones before."""
        if self._live is not None:
            from rich.text import Text  # noqa: PLC0415 - of an extra

            self._live.update(Text("\n".join(lines)), refresh=True)
            return
        if self._shown and lines:
            self._console.line()
        for line in lines:
            self._console.line(line)
        self._shown += 1
        self._console.flush()


class ProgressBar:
    """A bar on stderr while something long goes on, on a terminal alone; enter it to begin.

    Args:
        console: Who knows whether there is a terminal.
        title: What goes on.
        total: How much there is to do; None where that is not known.
    """

    def __init__(self, console: Console, title: str, total: float | None = None) -> None:
        self._console = console
        self._title = title
        self._total = total
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        rich = None if self._console.json else self._console.rich(sys.stderr)
        if rich is not None:
            from rich import progress  # noqa: PLC0415 - of an extra

            self._progress = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TextColumn("{task.fields[detail]}", markup=False),
                progress.TimeElapsedColumn(),
                console=rich,
            )
            self._task = self._progress.add_task(self._title, total=self._total, detail="")
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, done: float, detail: str = "", total: float | None = None) -> None:
        """Show how much of it is done."""
        if self._progress is not None:
            more = {} if total is None else {"total": total}
            self._progress.update(self._task, completed=done, detail=detail, **more)
