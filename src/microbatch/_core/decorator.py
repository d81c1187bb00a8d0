"""@batched: a bulk function or method, called with one item at a time."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, Unpack, overload

from microbatch._pure.handler import Results, Silent, handler_kind

from .batcher import Batcher
from .keywords import Settings
from .single import About, Told

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

T = TypeVar("T")


R = TypeVar("R")


S = TypeVar("S")


C = TypeVar("C")


class Bound(Generic[T, R]):
    """A single-item function with its batcher behind it.

    Attributes:
        batcher: The ``Batcher`` that collects the calls: for ``submit_many``, ``stats`` and the rest.
    """

    # A property named __qualname__ is not allowed, and __getattr__ would slow down every attribute.
    __slots__ = ("__qualname__", "__weakref__", "_about", "_owner", "batcher")

    if TYPE_CHECKING:
        batcher: Batcher[T, R]

        async def __call__(self, item: T, *, priority: float = 0) -> R:
            """Hand in one item and wait for its result, as ``Batcher.submit`` does."""
            ...

    else:

        async def __call__(self, item: Any, *rest: Any, priority: float = 0) -> Any:
            """Hand in one item and wait for its result, as ``Batcher.submit`` does."""
            if rest:
                raise self._about.not_one_item(1 + len(rest))
            return await self.batcher.submit(item, priority=priority)

        # What inspect and others ask, to tell that this is a coroutine function and what it takes. There is
        # no ``__wrapped__``: who follows it takes this for the bulk function, which takes and returns
        # something else, and may be a plain function or a generator.
        __code__ = __call__.__code__
        __defaults__ = None
        __kwdefaults__ = None
        __doc__ = Told("doc", __doc__)
        __name__ = Told("name", "Bound")
        __signature__ = Told("signature")
        __annotations__ = Told("annotations")
        __globals__ = Told("globals")

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            """Return itself: having this it is a routine to inspect, and so to ``help()``."""
            return self

    def __init__(self, batcher: Batcher[T, R], about: About, owner: object) -> None:
        self.batcher = batcher
        self._about = about
        self.__qualname__ = about.qualname
        self._owner = owner  # alive while it is used

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
        traceback: types.TracebackType | None,
    ) -> None:
        await self.batcher.__aexit__(exc_type, exc, traceback)

    # Equal at each look-up, as bound methods are: frameworks use functions as keys.

    def __eq__(self, other: object) -> bool:
        return type(other) is Bound and self.batcher is other.batcher

    def __hash__(self) -> int:
        return hash(self.batcher)

    def __repr__(self) -> str:
        return f"<batched method {self._about.qualname} of {self._owner!r}>"


class BatchedFunction(Bound[T, R]):
    """What ``@batched`` makes of a function; in a class body it gives each instance a batcher of its own."""

    def __init__(self, function: Any, settings: dict[str, Any]) -> None:
        self._function = function
        self._settings = settings
        self._batchers: dict[int, tuple[weakref.ref[Any], Batcher[Any, Any]]] = {}
        self._own: Batcher[T, R] | None = None
        plain: Any = (
            function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
        )
        handler_kind(plain)
        Batcher(plain, **settings)  # refuse wrong settings where they stand
        self._about, self._about_bound = About(plain), About(plain)
        self.__module__, self.__qualname__ = self._about.module, self._about.qualname
        self._attribute = self._about.name
        self._about.find_owner()
        if isinstance(function, staticmethod):
            self._about.owner = ""
        elif isinstance(function, classmethod):
            self._about.owner = self._about.owner or "cls"

    @property
    def batcher(self) -> Batcher[T, R]:  # type: ignore[override]
        """Return the batcher of the function itself, made when first asked for."""
        if self._own is None:
            owner = self._about.owner
            if owner:
                raise AttributeError(
                    f"{self._about.qualname} has a batcher for each {owner}: "
                    f"it is {owner}.{self._attribute}.batcher"
                )
            function = self._function
            if isinstance(function, staticmethod):
                function = function.__func__
            self._own = Batcher(function, **self._settings)
        return self._own

    __doc__ = Told("doc", __doc__)

    async def __call__(self, item: Any, *rest: Any, priority: float = 0) -> Any:
        """Hand in one item and wait for its result, as ``Batcher.submit`` does."""
        if self._about.owner:  # called through its class, or under @classmethod by Python 3.13
            if len(rest) != 1:
                raise self._about.not_one_item(1 + len(rest))
            return await self._bound(item)(*rest, priority=priority)
        if rest:
            raise self._about.not_one_item(1 + len(rest))
        return await self.batcher.submit(item, priority=priority)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        function = self._function
        if isinstance(function, staticmethod):
            return self
        if isinstance(function, classmethod):
            return self._bound(owner if owner is not None else type(instance))
        return self if instance is None else self._bound(instance)

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = name
        if self._about.owner is None:
            self._about.owner = "self"

    # By identity, unlike its methods: each has a batcher of its own, which need not be made for this.

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<batched function {self._about.qualname}>"

    def _bound(self, owner: Any) -> Bound[Any, Any]:
        """Return the single-item method of one instance: by identity, whatever it is equal to."""
        known = self._batchers.get(id(owner))
        if known is not None and known[0]() is owner:
            return Bound(known[1], self._about_bound, owner)
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
        return Bound(batcher, self._about_bound, owner)

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

        kind = handler_kind(function)
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

        async def __call__(self, instance: S, item: T, /, *, priority: float = 0) -> R:
            """Hand in one item to an instance's batcher and wait for its result."""
            ...


class BatchedClassMethod(Generic[C, T, R]):
    """The same of a class method, which is a ``Bound`` on the class too."""

    if TYPE_CHECKING:

        def __get__(self, instance: C | None, owner: type[C] | None = None) -> Bound[T, R]: ...


class _Decorator(Protocol):
    """From a bulk function or method to a single-item one."""

    @overload
    def __call__(self, handler: Callable[[list[T]], Silent], /) -> Bound[T, None]: ...
    @overload
    def __call__(self, handler: Callable[[list[T]], Results[R]], /) -> Bound[T, R]: ...
    @overload
    def __call__(
        self, handler: Callable[[type[C], list[T]], Silent], /
    ) -> BatchedClassMethod[C, T, None]: ...
    @overload
    def __call__(
        self, handler: Callable[[type[C], list[T]], Results[R]], /
    ) -> BatchedClassMethod[C, T, R]: ...
    @overload
    def __call__(self, handler: Callable[[S, list[T]], Silent], /) -> BatchedMethod[S, T, None]: ...
    @overload
    def __call__(
        self, handler: Callable[[S, list[T]], Results[R]], /
    ) -> BatchedMethod[S, T, R]: ...
    def __call__(self, handler: Any, /) -> Any: ...


# Type checkers give a class method as a function of the class, a static one as a plain function.
@overload
def batched(handler: Callable[[list[T]], Silent], /) -> Bound[T, None]: ...


@overload
def batched(handler: Callable[[list[T]], Results[R]], /) -> Bound[T, R]: ...


@overload
def batched(handler: Callable[[type[C], list[T]], Silent], /) -> BatchedClassMethod[C, T, None]: ...


@overload
def batched(
    handler: Callable[[type[C], list[T]], Results[R]], /
) -> BatchedClassMethod[C, T, R]: ...


@overload
def batched(handler: Callable[[S, list[T]], Silent], /) -> BatchedMethod[S, T, None]: ...


@overload
def batched(handler: Callable[[S, list[T]], Results[R]], /) -> BatchedMethod[S, T, R]: ...


@overload
def batched(**settings: Unpack[Settings[Any]]) -> _Decorator: ...


def batched(handler: Any = None, /, **settings: Unpack[Settings[Any]]) -> Any:
    """Turn a bulk function or method into one that is called with a single item.

    ``@batched``, or ``@batched(max_batch_size=50)``, above ``async def get(ids)`` makes ``await get(id)``.
    In a class body each instance has a batcher of its own, kept by the instance's identity and freed with
    it; static and class methods work too. The result has ``.batcher``, ``aclose()`` and ``async with``.

    To ``inspect`` and the frameworks that use it the result is a coroutine function with the signature
    ``(item)``. A call takes ``priority=`` too, which the signature does not show: a framework that fills in
    parameters from a request would let its sender choose.

    Args:
        handler: The bulk function or method, where ``@batched`` stands without parentheses.
        settings: ``Batcher``'s keyword arguments.

    Raises:
        TypeError: If the function cannot be a handler, a setting has the wrong type, or an instance has
            ``__slots__`` without ``__weakref__`` (when the method is first looked up there). When called
            with anything but one item.
        ValueError: If a setting is out of its range.
    """
    if handler is not None:
        return BatchedFunction(handler, dict(settings))

    return functools.partial(BatchedFunction, settings=dict(settings))
