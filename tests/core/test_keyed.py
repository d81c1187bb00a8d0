"""keyed: keys of lanes and of coalescing are told apart by comparison, each asked as a dict would ask."""

from __future__ import annotations

import pytest
from support import Caller

from microbatch._core.entry import Entry
from microbatch._core.lanes import Lanes

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


def test_values_of_equal_hash_are_told_apart_by_comparison() -> None:
    """And taken out by identity, so that nothing is compared then."""
    lanes = Lanes(lambda: 1, 0.0)
    entries = [Entry(i, Caller(), partition=p) for i, p in enumerate([1, 2**61, True, 1.0, 2])]
    for entry in entries:
        lanes.add(entry, 0.0)
    assert [lane.partition for lane in lanes._lanes] == [1, 2**61, 2]
    for entry in entries[:2]:
        lanes.withdraw(entry)
    assert [lane.partition for lane in lanes._lanes] == [1, 2]


def test_a_key_of_a_subclass_is_asked_first_and_its_fault_is_its_own() -> None:
    """Python asks the subclass's ``__eq__`` before the other's; the newcomer's word counts then."""

    class Sub(Plain):
        def __eq__(self, other: object) -> bool:
            raise LookupError("no comparison")

        __hash__ = Plain.__hash__

    known, newcomer = Sub(), Plain()
    lanes = Lanes(lambda: 1, 0.0)
    for partition in (known, newcomer, newcomer):
        lanes.add(Entry(0, Caller(), partition=partition), 0.0)
    assert [lane.partition for lane in lanes._lanes] == [known]


class Plain:
    """Equal to all of its class."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain)
