"""The right to run a batch: who holds it, and how many are taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microbatch._loops.protocol import Handle

    from .run import Run


class Slot:
    """The right to run batches, one at a time, held by a task that goes on while some are ready.

    Attributes:
        held: True while the slot counts as taken.
        starting: True while its task is about to cut a batch.
        handled: Items since the loop last had a turn.
        task: What holds it.
        run: The batch that it runs.
    """

    __slots__ = ("handled", "held", "run", "starting", "task")

    def __init__(self) -> None:
        self.held: bool = True
        self.starting: bool = True
        self.handled: int = 0
        self.task: Handle | None = None
        self.run: Run | None = None


class Slots:
    """All slots of a batcher.

    Attributes:
        held: Those whose tasks live.
        busy: How many count as taken.
        starting: How many of them are about to cut a batch.
    """

    __slots__ = ("busy", "held", "starting")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop what belonged to an event loop that is gone."""
        self.held: set[Slot] = set()
        self.busy: int = 0
        self.starting: int = 0

    def free(self, slot: Slot) -> None:
        """Let another one have its place, though its task may live on."""
        slot.held = False
        self.busy -= 1
