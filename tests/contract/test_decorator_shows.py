"""What a ``@batched`` function shows of itself: to inspect, to help(), to frameworks."""

from __future__ import annotations

import asyncio
import functools
import inspect
import pydoc
import typing
from collections.abc import AsyncIterator, Awaitable  # noqa: TC003 - evaluated here
from typing import Any, Optional

import pytest

from microbatch import batched

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@batched
async def user(ids: list[int]) -> list[str | Exception | None]:
    """Fetch users."""
    return [f"user {number}" for number in ids]


@batched(max_batch_size=10)
def plain(ids: list[int]) -> list[str]:
    return [str(number) for number in ids]


@batched
async def stream(ids: list[int]) -> AsyncIterator[tuple[int, str | KeyError]]:
    for index, number in enumerate(ids):
        yield index, str(number)


class Shop:
    def __repr__(self) -> str:
        return "<the shop>"

    @batched
    async def price(self, names: list[str]) -> list[float]:
        """Look up prices."""
        return [float(len(name)) for name in names]

    @batched
    @classmethod
    async def of_class(cls, names: list[str]) -> None: ...

    @batched
    @staticmethod
    async def of_nobody(names: list[str]) -> list[int]:
        return [len(name) for name in names]


SHOP = Shop()
SIGNATURES = {
    "(item: int) -> str | None": user,
    "(item: int) -> str": plain,
    "(item: str) -> float": SHOP.price,
    "(self, /, item: str) -> float": Shop.price,
    "(item: str) -> None": Shop.of_class,
    "(item: str) -> int": Shop.of_nobody,
}
FUNCTIONS = [*SIGNATURES.values(), stream]


@pytest.mark.parametrize("signature", SIGNATURES)
def test_the_signature_is_the_single_items(signature: str) -> None:
    """Help in an editor, and frameworks that fill in parameters, must not see the list."""
    function = SIGNATURES[signature]
    assert str(inspect.signature(function)) == signature
    assert set(typing.get_type_hints(function)) == {"item", "return"}


@pytest.mark.parametrize("function", FUNCTIONS, ids=repr)
def test_it_is_a_coroutine_function(function: Any) -> None:
    """Frameworks run what is none in a thread; a generator they would iterate."""
    assert inspect.iscoroutinefunction(function)
    assert asyncio.iscoroutinefunction(function)
    assert inspect.iscoroutinefunction(functools.partial(function, 1))
    assert inspect.isroutine(function)
    assert not inspect.isasyncgenfunction(inspect.unwrap(function))


def test_it_tells_its_name_and_its_docstring() -> None:
    """In tracebacks, logs and help()."""
    assert repr(user) == "<batched function user>"
    assert repr(Shop.price) == "<batched function Shop.price>"
    assert repr(SHOP.price) == "<batched method Shop.price of <the shop>>"
    for function, name, doc in (
        (user, "user", "Fetch users."),
        (SHOP.price, "price", "Look up prices."),
    ):
        assert function.__name__ == name  # type: ignore[attr-defined]
        assert function.__doc__ == doc
        assert f"{name}(item: " in pydoc.plain(pydoc.render_doc(function))
    assert SHOP.price.__qualname__ == "Shop.price"  # type: ignore[attr-defined]
    assert user.__module__ == __name__


def test_its_classes_keep_their_own_docstrings() -> None:
    """What the objects tell is no attribute of the class."""
    bound, function = type(SHOP.price), type(user)
    assert (bound.__doc__ or "").startswith("A single-item function")
    assert (function.__doc__ or "").startswith("What ``@batched`` makes")
    assert bound.__name__ == bound.__qualname__ == "Bound"


def test_a_method_is_equal_to_itself_at_each_look_up() -> None:
    """Frameworks keep functions as keys, of caches and of overrides."""
    other = Shop()
    assert SHOP.price == SHOP.price
    assert len({SHOP.price, SHOP.price, other.price, Shop.price, user, user}) == 4
    assert user != plain
    assert SHOP.price.__get__(other) == SHOP.price  # type: ignore[attr-defined]


def test_annotations_that_do_not_exist_at_run_time_are_left_out() -> None:
    """An import for type checkers alone is no reason to fail."""

    @batched
    async def unknown(items: list[Missing]) -> list[Missing]:  # type: ignore[name-defined] # noqa: F821
        return items

    assert str(inspect.signature(unknown)) == "(item)"


async def bare(items):  # type: ignore[no-untyped-def]
    return items


async def union(items: typing.Sequence[int]) -> Optional[list[Optional[int]]]: ...  # noqa: UP045


def later(items: list[int]) -> Awaitable[list[str]]: ...  # type: ignore[empty-body]


async def only_errors(items: list[int]) -> list[ValueError | KeyError]: ...  # type: ignore[empty-body]


async def odd(items: dict[str, int]) -> AsyncIterator[int]:
    yield 1


class Callable:
    async def __call__(self, items: list[int]) -> list[str]: ...  # type: ignore[empty-body]


async def second(start: int, items: list[int]) -> list[str]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (bare, "(item)"),
        (union, "(item: int)"),
        (later, "(item: int) -> str"),
        (only_errors, "(item: int)"),
        (odd, "(item)"),
        (Callable(), "(item: int) -> str"),
        (functools.partial(second, 1), "(item: int) -> str"),
        (sorted, "(item)"),
        (max, "(item)"),
    ],
)
def test_whatever_can_be_a_handler_has_a_signature(function: Any, signature: str) -> None:
    """Partials, callable objects, built-in functions, types of all sorts."""
    assert str(inspect.signature(batched(function))) == signature
    assert inspect.iscoroutinefunction(batched(function))


async def test_a_second_positional_argument_is_refused_by_name() -> None:
    """It is no bulk call, and it is no instance to keep a batcher for."""
    expected = r"user\(\) takes one item, got 2 positional arguments"
    with pytest.raises(TypeError, match=expected):
        await user(1, 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Shop.price\(\) takes one item, got 3 positional"):
        await SHOP.price("a", "b", "c")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Shop.price\(\) takes its self and one item, got 1 pos"):
        await Shop.price(SHOP)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Shop.of_nobody\(\) takes one item, got 2 positional"):
        await Shop.of_nobody("a", "b")  # type: ignore[call-arg]


def test_a_method_has_no_batcher_on_its_class() -> None:
    """One made there would call the method without its instance."""
    assert not hasattr(Shop.price, "batcher")
    with pytest.raises(AttributeError, match=r"Shop.price has a batcher for each self"):
        Shop.price.batcher  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        user.missing  # type: ignore[attr-defined]


async def test_a_method_whose_signature_does_not_tell_is_one_by_its_place() -> None:
    """Decorators that take ``*args`` hide ``self``; the class body shows it."""

    def decorated(function: Any) -> Any:
        async def call(*args: Any) -> Any:
            return await function(*args)

        return call

    class Hidden:
        @batched
        @decorated
        async def get(self, items: list[int]) -> list[int]:
            return items

    hidden, function = Hidden(), batched(decorated(bare))
    assert await Hidden.get(hidden, 1) == 1
    assert await function(2) == 2
    await hidden.get.aclose()
    await function.aclose()


async def test_an_item_may_be_given_by_name() -> None:
    """FastAPI gives arguments by the names of the signature."""

    @batched
    async def double(items: list[int]) -> list[int]:
        return [item * 2 for item in items]

    assert await double(item=1) == await double(1) == 2
    assert await Shop().price(item="tea") == 3.0
    await double.aclose()


async def test_the_other_order_of_decorators_works_too() -> None:
    """Python 3.13 calls what stands under ``@classmethod`` with the class first."""

    class Order:
        @classmethod
        @batched
        async def of_class(cls, items: list[int]) -> list[str]:
            return [f"{cls.__name__}{item}" for item in items]

        @staticmethod
        @batched
        async def of_nobody(items: list[int]) -> list[int]:
            return [-item for item in items]

    assert await Order.of_class(1) == await Order().of_class(1) == "Order1"
    assert await Order.of_nobody(1) == await Order().of_nobody(1) == -1
    assert inspect.iscoroutinefunction(Order.of_class)
    assert str(inspect.signature(Order.of_class)) == "(item: int) -> str"
    await Order.of_nobody.aclose()
