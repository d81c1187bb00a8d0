"""Loads that go to a batcher together: a group of items with callers of their own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from microbatch._pure.copying import copy_exception
from microbatch._pure.exceptions import BatcherClosed, BatcherFull, HandlerCrashed
from microbatch._telemetry.log import write

from .entry import BUFFERED
from .leaving import Leaving, entry_of_member
from .waiters import Group

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from microbatch._loops.protocol import Load, Loop


#: Errors that say nothing of the key: the next one who loads it tries again.
_NO_OUTCOME = (BatcherClosed, BatcherFull, HandlerCrashed)

#: Under trio, and for what was withdrawn: no event loop.
_NO_LOOP = object()


class Withdrawn:
    """The source of a load whose item was withdrawn, for those who want it after all."""

    __slots__ = ("_item", "_load", "loop", "native")

    withdrawn = True

    def __init__(self, window: Window, item: Any) -> None:
        self.loop: Loop = window.loop
        self.native: Any = _NO_LOOP
        self._load = window.load
        self._item = item

    def again(self) -> Awaitable[Any]:
        """Load it anew."""
        return self._load(self._item)

    def leave(self, load: Load) -> None:
        """Take note that nobody waits: it was withdrawn for that."""

    def holds(self, index: int) -> bool:
        """Tell that nobody can share it."""
        del index
        return False


class Window(Group):
    """What a Loader collects within two turns of the event loop.

    To the batcher it is the group of a ``submit_many``, so that its items cost no more than those do. Each
    has one `Load`, or a list of them where one was asked for again; None once it has its outcome, or nobody
    waits for it any more.

    Args:
        loop: The event loop that all of it happens in.
        cache: Where the loader looks for loads by their cache keys.
        keeps: Whether a load stays there once it has its outcome.
        plain: Whether what is loaded is its own cache key.
        apart: Whether it matters whose each load is: they keep their callers' contexts.
        load: Loads an item anew: that of a load which was withdrawn, and is awaited after all.

    Attributes:
        make: Makes a load.
        items: The loads' arguments: what the handler gets.
        keys: Their cache keys; the very same list where they are the same.
        loads: Who waits for each.
        native: asyncio's object for the loop; no loop's under trio, where one has to ask the loop itself.
        entered: Whether the batcher has them.
        leaving: Withdraws them there.
    """

    __slots__ = (
        "_cache",
        "_keeps",
        "_thinned",
        "entered",
        "items",
        "keys",
        "leaving",
        "load",
        "loads",
        "loop",
        "make",
        "native",
    )

    withdrawn = False

    def __init__(
        self,
        loop: Loop,
        cache: MutableMapping[Any, Any],
        *,
        keeps: bool,
        plain: bool,
        apart: bool,
        load: Callable[[Any], Awaitable[Any]],
    ) -> None:
        super().__init__(0, 0)
        self.loop: Loop = loop
        self.native: Any = loop.native or _NO_LOOP
        self.make: Callable[[], Any] = loop.create_load
        self.items: list[Any] = []
        self.keys: list[Any] = self.items if plain else []
        self.loads: list[Load | list[Load] | None] = []
        self.load: Callable[[Any], Awaitable[Any]] = load
        self.entered: bool = False
        self.leaving: Leaving
        if apart:
            self.contexts = []
        self._cache = cache
        self._keeps = keeps
        self._thinned = False

    def share(self, index: int, load: Load) -> None:
        """Give one more load the outcome of an item."""
        load.source, load.index, load.awaiting = self, index, None
        known = self.loads[index]
        if isinstance(known, list):
            known.append(load)
        else:
            assert known is not None  # noqa: S101 - else it would not be in the cache
            self.loads[index] = [known, load]

    def holds(self, index: int) -> bool:
        """Tell whether who comes now may share an item: without a cache, only one that waits for a batch."""
        if self._keeps or not self.entered:
            return True
        if (entry := entry_of_member(self, index)) is not None:
            return entry.state is BUFFERED and entry.attempts == 1
        return index >= self.taken

    # Who goes

    def leave(self, load: Load) -> None:
        """Nobody waits for a load any more; its item is withdrawn with the last one."""
        index = load.index
        self.retire(load)
        known = self.loads[index]
        if isinstance(known, list):
            known.remove(load)
            if known:
                self._replace(index, load, known[0])
                return
        self.loads[index] = None
        self._thinned = True
        self._replace(index, load, None)
        if self.entered:
            self.leaving.member_left(self.loop, self, index)

    def gone(self, index: int) -> bool:
        """Tell whether nobody waits for an item any more, and let nobody join it if that is so.

        Who was cancelled a moment ago has gone, though the notice of it is still on its way.
        """
        known = self.loads[index]
        if known is None:
            return True
        loads = known if isinstance(known, list) else [known]
        if not all(load.abandoned() for load in loads):
            return False
        self.loads[index] = None
        for load in loads:
            self.retire(load)
            self._replace(index, load, None)
        return True

    def retire(self, load: Load) -> None:
        """Bring a load no outcome: who awaits it from now on has it loaded anew."""
        load.source = Withdrawn(self, self.items[load.index])

    def done(self) -> bool:
        return False  # whoever goes tells of it: what stands in flat lists is wanted

    def close(self) -> None:
        """Take no more loads, and leave out those whose callers have gone: the batcher gets the others."""
        if self._thinned:
            kept = [place for place, known in enumerate(self.loads) if known is not None]
            plain = self.keys is self.items
            self.items = [self.items[place] for place in kept]
            self.keys = self.items if plain else [self.keys[place] for place in kept]
            self.loads = [self.loads[place] for place in kept]
            if self.contexts is not None:
                self.contexts = [self.contexts[place] for place in kept]
            for place, known in enumerate(self.loads):
                for load in known if isinstance(known, list) else (known,):
                    load.index = place  # type: ignore[union-attr]
        self.left = len(self.items)

    # Outcomes

    def take_in(self, first: int, values: list[Any]) -> None:
        if not self._keeps:
            for index, known in enumerate(self.loads[first : first + len(values)], first):
                if known is not None:
                    self._forget(index, known)
        self.loop.resolve(self.loads, first, values)
        self._end(len(values))

    def put(self, index: int, value: Any) -> None:
        self.take_in(index, [value])

    def put_error(self, index: int, error: Exception) -> None:
        known = self.loads[index]
        if known is not None:
            if not self._keeps or issubclass(type(error), _NO_OUTCOME):
                self._forget(index, known)
            self.loads[index] = None
            if isinstance(known, list):
                for load in known:
                    load.fail(copy_exception(error))
            else:
                known.fail(error)
        self._end(1)

    def fail_all(self, error: Exception) -> None:
        """Fail all loads that have no outcome: the batcher did not take them."""
        for index in range(len(self.loads)):
            self.put_error(index, copy_exception(error))

    def _end(self, count: int) -> None:
        self.left -= count
        if self.waiter is not None and not self.left and not self.waiter.done():
            self.waiter.set_result(None)

    # The cache

    def _forget(self, index: int, known: Load | list[Load]) -> None:
        """Keep a load that is about to have its outcome no longer."""
        self._replace(index, known[0] if isinstance(known, list) else known, None)

    def _replace(self, index: int, load: Load, by: Load | None) -> None:
        """Keep another load, or none, where this one is kept."""
        cache, key = self._cache, self.keys[index]
        try:
            if cache.get(key) is load:
                if by is None:
                    del cache[key]
                else:
                    cache[key] = by
        except Exception:  # noqa: BLE001 - a mapping, or a key, of the user's: others wait for their outcomes
            write(logging.ERROR, "a Loader's cache failed", exc_info=True)
