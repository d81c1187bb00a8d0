"""The DataLoader of GraphQL servers, and of any request that reads by id: `Loader`."""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Hashable,
    Iterable,
    MutableMapping,
)
from contextvars import copy_context
from typing import Any, Generic, TypeVar, Unpack, overload

from ._core import info
from ._core.batcher import Batcher, engine_of
from ._core.keywords import Settings
from ._core.window import Window
from ._loops.on_asyncio import AsyncioLoad, running_loop

__all__ = ["Loader"]

K = TypeVar("K")
R = TypeVar("R")


class Loader(Generic[K, R]):
    """Loads by key: keys that are loaded together go to the handler together, and each only once.

    Make one for each request, over a ``Batcher`` that all requests share: then one handler call serves many
    requests, and each request has a cache of its own. Or make one over a handler of its own. It works on
    asyncio, uvloop and trio, in one event loop at a time and in that loop's thread. It needs no closing, and
    leaves nothing behind.

    Loads are collected for two turns of the event loop before they go: nested resolvers start tasks that load
    in the next turn. Then they are the batcher's, with all that it promises.

    Args:
        source: A ``Batcher``; or a bulk function from a list of keys to one result for each, as
            ``Batcher`` takes it. An exception in a result's place is that key's outcome.
        key: What an argument of ``load`` is cached by, where that is not the argument itself: a function from
            the argument to something hashable. Arguments with equal cache keys are one load; the handler
            gets the first of them.
        cache: True keeps each load, with its value or its error, until it is cleared. False shares only what
            is buffered at the same time. A mutable mapping keeps loads in the place of a dict, by their cache
            keys, and may lose any of them at any time (a bound, a time to live); its values are the loader's.
        settings: Those of ``Batcher``, where the source is a handler.

    Raises:
        TypeError: If the source is neither, ``key`` cannot be called, ``cache`` is neither a bool nor a
            mutable mapping, or settings are given with a batcher, which has its own.
        ValueError: If a setting is out of its range.
    """

    __slots__ = ("__weakref__", "_cache", "_door", "_engine", "_keeps", "_key", "_window")

    @overload
    def __init__(
        self,
        source: Batcher[K, R],
        *,
        key: Callable[[K], Hashable] | None = None,
        cache: bool | MutableMapping[Any, Any] = True,
    ) -> None: ...
    @overload
    def __init__(
        self: Loader[K, None],
        source: Callable[[list[K]], Awaitable[None]],
        *,
        key: Callable[[K], Hashable] | None = None,
        cache: bool | MutableMapping[Any, Any] = True,
        **settings: Unpack[Settings[K]],
    ) -> None: ...
    @overload
    def __init__(
        self,
        source: Callable[[list[K]], Awaitable[Collection[R | Exception]]],
        *,
        key: Callable[[K], Hashable] | None = None,
        cache: bool | MutableMapping[Any, Any] = True,
        **settings: Unpack[Settings[K]],
    ) -> None: ...
    @overload
    def __init__(
        self,
        source: Callable[[list[K]], AsyncIterator[tuple[int, R | Exception]]],
        *,
        key: Callable[[K], Hashable] | None = None,
        cache: bool | MutableMapping[Any, Any] = True,
        **settings: Unpack[Settings[K]],
    ) -> None: ...
    @overload
    def __init__(
        self: Loader[K, None],
        source: Callable[[list[K]], None],
        *,
        key: Callable[[K], Hashable] | None = None,
        cache: bool | MutableMapping[Any, Any] = True,
        **settings: Unpack[Settings[K]],
    ) -> None: ...
    @overload
    def __init__(
        self,
        source: Callable[[list[K]], Collection[R | Exception]],
        *,
        key: Callable[[K], Hashable] | None = None,
        cache: bool | MutableMapping[Any, Any] = True,
        **settings: Unpack[Settings[K]],
    ) -> None: ...
    def __init__(
        self,
        source: Batcher[K, R] | Callable[[list[K]], Any],
        *,
        key: Callable[[K], Hashable] | None = None,
        cache: bool | MutableMapping[Any, Any] = True,
        **settings: Any,
    ) -> None:
        if isinstance(source, Batcher):
            if settings:
                names = ", ".join(settings)
                raise TypeError(f"a Loader over a Batcher takes no settings of one, got {names}")
            batcher: Batcher[K, R] = source
        else:
            batcher = Batcher(source, **settings)
        if key is not None and not callable(key):
            raise TypeError(f"key must be a function or None, got {key!r}")
        if not isinstance(cache, bool | MutableMapping):
            raise TypeError(f"cache must be a bool or a mutable mapping, got {cache!r}")
        self._engine = engine_of(batcher)
        self._door = self._engine.door
        self._key = key
        self._keeps = cache is not False
        self._cache: MutableMapping[Any, Any] = {} if isinstance(cache, bool) else cache
        self._window: Window | None = None

    def load(self, key: K) -> Awaitable[R]:
        """Load by key, together with all that is loaded within two turns of the event loop.

        Args:
            key: What the handler gets.

        Returns:
            An awaitable for any number of awaiters, in any tasks. Equal keys have one load and its outcome,
            errors included, until ``clear``; what ended by cancellation, with ``BatcherClosed``,
            ``BatcherFull`` or ``HandlerCrashed`` is not kept. On asyncio it is a future, so that ``gather``
            needs no task for it.

        Raises:
            TypeError: If the key, or what ``key=`` makes of it, is not hashable. What ``key=`` raises is
                raised here too.
            WouldDeadlock: Inside a running batch of the same batcher, but for a key that has its outcome.
            RuntimeError: If no event loop runs here, or the batcher serves another one that is still alive.

        Awaiting it gives the handler's result for this key, or raises what ``Batcher.submit`` does: each
        awaiter an exception of its own. A failure that nobody awaited is logged once.

        Cancellation of an awaiter is its own: the others go on. With the last one a buffered item is
        withdrawn, and one in flight is handled to its end without anybody. Who awaits a load after that
        has it loaded anew.
        """
        cache_key: Any = key if self._key is None else self._key(key)
        known = self._cache.get(cache_key)
        if known is not None:
            if known.source is None:
                if type(known) is AsyncioLoad:
                    known.keep()
                return known  # type: ignore[no-any-return]
            if (sharing := self._share(known)) is not None:
                return sharing  # type: ignore[no-any-return]
        window = self._window
        if window is None or window.native is not running_loop():
            window = self._open(window)
        if self._door.running and info.running() is not None:
            self._engine.guard("load")
        load = window.make()
        items = window.items
        load.source = window
        load.index = len(items)
        load.awaiting = None
        self._cache[cache_key] = load
        items.append(key)
        if window.keys is not items:
            window.keys.append(cache_key)
        window.loads.append(load)
        if window.contexts is not None:
            window.contexts.append(copy_context())
        return load  # type: ignore[no-any-return]

    async def load_many(self, keys: Iterable[K]) -> list[R | Exception]:
        """Load by many keys and wait for all outcomes.

        Args:
            keys: Read to their end at once.

        Returns:
            For each key, in order, its value, or the exception in a failed key's place; so also one that
            is not hashable, or at which ``key=`` raises.

        Raises:
            TypeError: If the keys cannot be iterated. What the iterable raises is raised here too.
            WouldDeadlock: Inside a running batch of the same batcher, but where all have their outcome.
            RuntimeError: If no event loop runs here, or the batcher serves another one that is still alive.

        Cancellation counts as that of one awaiter for each key.
        """
        engine = self._engine
        loop = engine.serving.bind()
        loads: list[Any] = []
        for key in list(keys):
            try:
                loads.append(self.load(key))
            except RuntimeError:  # nothing can be loaded here
                raise
            except Exception as error:  # noqa: BLE001 - the key's, or of the user's function
                loads.append(error)
        pending = [
            load for load in loads if not isinstance(load, Exception) and load.source is not None
        ]
        if pending:
            all_of_them = Countdown(len(pending), loop.create_waiter())
            for load in pending:
                load.awaiting = all_of_them  # nobody else has it
            try:
                await all_of_them.waiter
            except BaseException:
                for load in pending:
                    if load.source is not None:
                        load.part(all_of_them)
                raise
        return [
            load
            if isinstance(load, Exception)
            else load.exception()
            if load.failed()
            else load.result()
            for load in loads
        ]

    def prime(self, key: K, value: R | Exception) -> None:
        """Keep a value that is known already, unless the key is loaded or primed; the first wins.

        Args:
            key: As in ``load``.
            value: What ``load`` gives from now on; an exception is raised in each who awaits it.

        Without a cache it does nothing.

        Raises:
            TypeError: If the key, or what ``key=`` makes of it, is not hashable.
            RuntimeError: If no event loop runs here, or the batcher serves another one that is still alive.
        """
        cache_key: Any = key if self._key is None else self._key(key)
        known = self._cache.get(cache_key)
        if not self._keeps or known is not None:
            return
        loop = self._engine.serving.bind()
        load = loop.create_load()
        load.source = load.awaiting = None
        if isinstance(value, Exception):
            load.fail(value)
            load.exception()  # whether anybody awaits it or not is nothing to log
        else:
            loop.resolve([load], 0, [value])
        self._cache[cache_key] = load

    def clear(self, key: K) -> None:
        """Forget what a key's load was, so that the next one goes to the handler; who awaits it goes on.

        Raises:
            TypeError: If the key, or what ``key=`` makes of it, is not hashable.
        """
        self._cache.pop(key if self._key is None else self._key(key), None)

    def clear_all(self) -> None:
        """Forget what all loads were."""
        self._cache.clear()

    def __repr__(self) -> str:
        return f"<Loader over {self._engine.rules.name!r}, {len(self._cache)} loads kept>"

    # Within

    def _share(self, known: Any) -> Any:
        """Return one more load of an item that is on its way; None if it cannot be shared."""
        source = known.source
        if not source.loop.is_current() or not source.holds(known.index):
            return None
        if self._door.running and info.running() is not None:
            self._engine.guard("load")
        load = source.loop.create_load()
        source.share(known.index, load)
        return load

    def _open(self, window: Window | None) -> Window:
        """Return a window of the event loop that runs here."""
        loop = self._engine.serving.bind()
        if window is None or window.loop is not loop:
            window = Window(
                loop,
                self._cache,
                keeps=self._keeps,
                plain=self._key is None,
                apart=self._engine.rules.asks,
                load=self.load,
            )
            self._window = window
            loop.in_two_turns(self._go)
        return window

    def _go(self) -> None:
        """Hand over to the batcher what was collected."""
        window, self._window = self._window, None
        assert window is not None  # noqa: S101 - it is what this was called for
        window.close()
        if not window.left:
            return
        try:
            self._engine.entrance.enter_window(window)
        except Exception as error:  # noqa: BLE001 - the batcher is closed, or serves another event loop
            window.fail_all(error)


class Countdown:
    """Who waits for many loads: woken by the last of them."""

    __slots__ = ("left", "waiter")

    def __init__(self, left: int, waiter: Any) -> None:
        self.left: int = left
        self.waiter: Any = waiter

    def done(self) -> bool:
        """Tell whether who waits has gone."""
        return bool(self.waiter.done())

    def set_result(self, value: Any) -> None:
        """Count an outcome."""
        del value
        self.left -= 1
        if not self.left:
            self.waiter.set_result(None)

    def set_exception(self, error: Exception) -> None:
        """Count a failure: it is read off the load."""
        self.set_result(error)
