"""Outcomes before the end of the call: `BatchInfo.resolve`, from the loop's thread or the handler's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch._loops.protocol import Loop

    from .giving_up import GivingUp
    from .run import Run
    from .settler import Settler


class Early:
    """Gives single items their outcomes while their handler goes on.

    Args:
        name: The batcher's.
        settler: Gives them.
        giving_up: Knows whether anybody still waits for the rest.
        changed: Called after each: an item has left room, or is in back-off.
    """

    __slots__ = ("_changed", "_giving_up", "_loop", "_name", "_settler")

    def __init__(
        self, name: str, settler: Settler, giving_up: GivingUp, changed: Callable[[], None]
    ) -> None:
        self._name = name
        self._settler = settler
        self._giving_up = giving_up
        self._changed = changed
        self.bind(None)

    def bind(self, loop: Loop | None) -> None:
        """Serve an event loop, or none."""
        self._loop = loop

    def resolve(self, run: Run, index: int, result: Any, shown: int) -> None:
        """``BatchInfo.resolve``: from the loop's thread at once, from the handler's by way of the loop."""
        loop = self._loop
        waiters: Any = run.waiters  # None once the run has ended, be it in this moment
        refusal = f"batcher {self._name!r}: item {shown} of the batch has its outcome already"
        if run.ended or loop is None or waiters is None or waiters[index] is None:
            raise RuntimeError(refusal)
        # From other threads it is only a promise until the loop has had a turn. dict.setdefault and pop
        # are one step each, whichever threads come together here.
        promised = vars(run).setdefault("promised", {})
        promise = (result,)
        if promised.setdefault(index, promise) is not promise:
            raise RuntimeError(refusal)
        if loop.is_current():
            self._keep(run, index)
        elif run.decided and promised.pop(index, None) is not None:
            raise RuntimeError(refusal)
        else:
            loop.call_from_thread(partial(self._keep, run, index))

    def _keep(self, run: Run, index: int) -> None:
        if not run.ended:
            self._settler.keep_promise(run, index)
            self._giving_up.cancel_if_abandoned(run)
            self._changed()
