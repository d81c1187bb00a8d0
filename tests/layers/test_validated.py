"""validated: bad items fail, the good ones run."""

from __future__ import annotations

import pytest
from layers_support import Backend, echo, told

from microbatch.errors import BatchAborted, ItemError
from microbatch.layers import validated

pytestmark = pytest.mark.anyio


def positive(item: int) -> None:
    if item <= 0:
        raise ItemError(f"{item} is not positive", code="not_positive")


async def test_bad_items_fail_and_the_good_ones_run_without_them() -> None:
    """All bad items are told at once, not only the first."""
    backend = Backend()
    results = await validated(backend, positive)([1, -1, 2, 0])
    assert told(results) == [10, "ItemError", 20, "ItemError"]
    assert [str(r) for r in results if isinstance(r, ItemError)] == [
        "-1 is not positive",
        "0 is not positive",
    ]
    assert backend.calls == [[1, 2]]


async def test_reject_runs_nothing_if_one_item_is_bad() -> None:
    """The good ones are aborted, told apart from the failed."""
    backend = Backend()
    handler = validated(backend, positive, mode="reject")
    results = await handler([1, -1, 2, 0])
    assert told(results) == ["BatchAborted", "ItemError", "BatchAborted", "ItemError"]
    aborted = results[0]
    assert isinstance(aborted, BatchAborted)
    assert (aborted.index, aborted.reason) == (1, results[1])
    assert backend.calls == []
    assert await handler([1, 2]) == [10, 20]


async def test_a_batch_of_bad_items_only_never_reaches_the_handler() -> None:
    """In either mode."""
    backend = Backend()
    assert told(await validated(backend, positive)([0])) == ["ItemError"]
    assert told(await validated(backend, positive, mode="reject")([0])) == ["ItemError"]
    assert backend.calls == []


def test_validated_refuses_bad_settings() -> None:
    """An async validator would never be awaited, and so let everything pass."""

    async def check(item: int) -> None: ...

    with pytest.raises(TypeError, match="validate must be a plain function, got <function"):
        validated(echo, check)
    with pytest.raises(TypeError, match="validate must be a plain function, got 3"):
        validated(echo, 3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="mode must be 'skip' or 'reject', got 'drop'"):
        validated(echo, positive, mode="drop")  # type: ignore[call-overload]
