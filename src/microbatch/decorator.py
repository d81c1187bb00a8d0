"""@batched: a bulk function or method, called with one item at a time."""

from __future__ import annotations

import functools
import weakref
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
)
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, Unpack, overload

from .batcher import Batcher, Settings
from .handler import kind_of

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")


class Bound(Generic[T, R]):
    """A single-item function with its batcher behind it.

    Attributes:
        batcher: The ``Batcher`` that collects the calls: for ``submit_many``, ``stats`` and the rest.
    """

    batcher: Batcher[T, R]

    def __init__(self, batcher: Batcher[T, R], owner: object = None) -> None:
        self.batcher = batcher
        self._owner = owner  # alive while it is used

    async def __call__(self, item: T, *, priority: float = 0) -> R:
        """Hand in one item and wait for its result, as ``Batcher.submit`` does."""
        return await self.batcher.submit(item, priority=priority)

    async def aclose(self, *drain_timeout: float | None) -> None:
        """Close the batcher behind, as ``Batcher.aclose`` does."""
        await self.batcher.aclose(*drain_timeout)

    async def __aenter__(self) -> Self:
        await self.batcher.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.batcher.__aexit__(exc_type, exc, traceback)


class BatchedFunction(Bound[T, R]):
    """What ``@batched`` makes of a function; in a class body it gives each instance a batcher of its own."""

    def __init__(self, function: Any, settings: dict[str, Any]) -> None:
        self._function = function
        self._settings = settings
        self._batchers: dict[int, tuple[weakref.ref[Any], Batcher[Any, Any]]] = {}
        self._own: Batcher[T, R] | None = None
        self._attribute = getattr(function, "__name__", "")
        plain: Any = (
            function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
        )
        kind_of(plain)
        Batcher(plain, **settings)  # refuse wrong settings where they stand
        functools.update_wrapper(self, plain, updated=())

    @property
    def batcher(self) -> Batcher[T, R]:  # type: ignore[override]
        """Return the batcher of the function itself, made when first asked for."""
        if self._own is None:
            function = self._function
            if isinstance(function, staticmethod):
                function = function.__func__
            self._own = Batcher(function, **self._settings)
        return self._own

    async def __call__(self, item: Any, *rest: Any, priority: float = 0) -> Any:
        """Hand in one item and wait for its result, as ``Batcher.submit`` does."""
        if rest:  # under @classmethod Python 3.13 calls with the class first
            (value,) = rest
            return await self._bound(item)(value, priority=priority)
        return await self.batcher.submit(item, priority=priority)

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        function = self._function
        if isinstance(function, staticmethod):
            return self
        if isinstance(function, classmethod):
            return self._bound(owner if owner is not None else type(instance))
        return self if instance is None else self._bound(instance)

    def _bound(self, owner: Any) -> Bound[Any, Any]:
        """Return the single-item method of one instance: by identity, whatever it is equal to."""
        known = self._batchers.get(id(owner))
        if known is not None and known[0]() is owner:
            return Bound(known[1], owner)
        key, batchers = id(owner), self._batchers
        try:
            reference = weakref.ref(owner, lambda _: batchers.pop(key, None))
        except TypeError:
            raise TypeError(
                f"@batched method {self._attribute!r} needs instances that can be weakly referenced: "
                f"add '__weakref__' to the __slots__ of {type(owner).__qualname__}"
            ) from None
        batcher: Batcher[Any, Any] = Batcher(self._handler_of(reference), **self._settings)
        self._batchers[key] = (reference, batcher)
        return Bound(batcher, owner)

    def _handler_of(self, reference: weakref.ref[Any]) -> Callable[[list[Any]], Any]:
        """Make a handler that does not keep its instance alive."""
        function = self._function
        if isinstance(function, classmethod):
            function = function.__func__

        def alive() -> Any:
            owner = reference()
            if owner is None:
                raise ReferenceError(
                    f"the object whose {self._attribute!r} was called is gone: keep it until its "
                    "results are there"
                )
            return owner

        kind = kind_of(function)
        if kind == "async":

            @functools.wraps(function)
            async def call(items: list[Any]) -> Any:
                return await function(alive(), items)

        elif kind == "generator":

            @functools.wraps(function)
            async def call(items: list[Any]) -> Any:
                async for pair in function(alive(), items):
                    yield pair

        else:

            @functools.wraps(function)
            def call(items: list[Any]) -> Any:
                return function(alive(), items)

        call.__dict__.pop("__wrapped__", None)
        return call


class BatchedMethod(Generic[S, T, R]):
    """What type checkers see of a ``@batched`` method: on an instance it is a ``Bound``."""

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type) -> Self: ...
        @overload
        def __get__(self, instance: S, owner: type | None = None) -> Bound[T, R]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...


class _Decorator(Protocol):
    """From a bulk function or method to a single-item one."""

    @overload
    def __call__(self, function: Callable[[list[T]], Awaitable[None]], /) -> Bound[T, None]: ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], Awaitable[Collection[R | Exception]]], /
    ) -> Bound[T, R]: ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], AsyncIterator[tuple[int, R | Exception]]], /
    ) -> Bound[T, R]: ...
    @overload
    def __call__(self, function: Callable[[list[T]], None], /) -> Bound[T, None]: ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], Collection[R | Exception]], /
    ) -> Bound[T, R]: ...
    @overload
    def __call__(
        self, function: Callable[[S, list[T]], Awaitable[None]], /
    ) -> BatchedMethod[S, T, None]: ...
    @overload
    def __call__(
        self, function: Callable[[S, list[T]], Awaitable[Collection[R | Exception]]], /
    ) -> BatchedMethod[S, T, R]: ...
    @overload
    def __call__(
        self, function: Callable[[S, list[T]], AsyncIterator[tuple[int, R | Exception]]], /
    ) -> BatchedMethod[S, T, R]: ...
    @overload
    def __call__(self, function: Callable[[S, list[T]], None], /) -> BatchedMethod[S, T, None]: ...
    @overload
    def __call__(
        self, function: Callable[[S, list[T]], Collection[R | Exception]], /
    ) -> BatchedMethod[S, T, R]: ...
    def __call__(self, function: Any, /) -> Any: ...


def batched(**settings: Unpack[Settings[Any]]) -> _Decorator:
    """Turn a bulk function or method into one that is called with a single item.

    ``@batched(max_batch_size=50)`` above ``async def get(ids)`` makes ``await get(id)``. In a class body
    each instance has a batcher of its own, kept by the instance's identity and freed with it; static and
    class methods work too. The result has ``.batcher``, ``aclose()`` and ``async with``.

    Args:
        settings: ``Batcher``'s keyword arguments.

    Raises:
        TypeError: If the function cannot be a handler, a setting has the wrong type, or an instance has
            ``__slots__`` without ``__weakref__`` (when the method is first looked up there).
        ValueError: If a setting is out of its range.
    """

    def decorate(function: Any) -> Any:
        return BatchedFunction(function, dict(settings))

    return decorate
