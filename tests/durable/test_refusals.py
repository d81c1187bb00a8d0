"""What is refused at once and by name, in place of a wait that cannot end or an error that says nothing."""

from __future__ import annotations

import pytest
from durable_support import Handler, batcher

from microbatch import WouldDeadlock
from microbatch.durable import DurableBatcher, DurableQueue

pytestmark = pytest.mark.anyio


async def test_inside_effects_no_queue_of_the_file_can_be_opened_or_closed(path):
    """The file's writer stands aside for them: who waits for it there waits for himself."""
    refused = []

    async def on_settle(connection, items, results):
        for call in (DurableQueue(path, item_type=int).stats, other.aclose):
            try:
                await call()
            except WouldDeadlock as error:
                refused.append(error.call)

    async with DurableQueue(path, item_type=int, queue="other") as other:
        async with batcher(path, Handler(), on_settle=on_settle) as durable:
            assert await durable.submit(1) == 2
        assert refused == ["open", "aclose"]
        assert (await other.stats()).ready == 0  # it is open still


@pytest.mark.parametrize(("setting", "value"), [("max_batch_size", 1.5), ("max_batch_size", "5")])
def test_a_batch_size_that_is_no_number_of_items_is_refused_by_name(path, setting, value):
    """Half an item would be met at the first claim only."""
    with pytest.raises(TypeError, match=setting):
        DurableBatcher(path, Handler(), item_type=int, **{setting: value})


def test_a_setting_of_an_odd_type_is_refused_by_name(path):
    """Also one that cannot be looked up."""
    with pytest.raises(ValueError, match="synchronous"):
        DurableQueue(path, item_type=int, synchronous=["full"])


async def test_a_page_of_dead_letters_behind_every_id_is_empty(path):
    """A cursor may be any number that is not negative."""
    async with DurableQueue(path, item_type=int) as queue:
        assert await queue.dead_letters(2**70) == []
