"""Drawn programs with all settings at once: nobody is lost, nothing comes twice, no law is broken.

A failure names its seed; ``python tests/contract/fuzz.py --loop LOOP --seed SEED --shrink`` prints the smallest
program that still fails; some steps of that are made here already. The laws are those of ``fuzz_check.LAWS``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fuzz import first_fault, smallest
from fuzz_program import drawn
from fuzz_run import LOOPS, recorded
from support import scaled

if TYPE_CHECKING:
    from fuzz_record import Call


def look(loop: str, first: int, count: int) -> None:
    found = first_fault(loop, first, count)
    if found is not None:
        seed, lines = found
        program = smallest(drawn(seed), loop, tries=300)
        pytest.fail("\n".join([f"seed {seed} on {loop}:", *lines, repr(program)]))


@pytest.mark.parametrize("loop", LOOPS)
def test_no_law_is_broken_by_hundreds_of_programs(loop: str) -> None:
    """Faults hide where settings meet: a full room, a crowd that leaves at once, and somebody who comes then."""
    look(loop, 0, 600)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("loop", LOOPS)
def test_no_law_is_broken_by_thousands_of_programs(loop: str) -> None:
    """Rare interleavings need many programs."""
    look(loop, 1_000_000, scaled(4_000))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_seed_is_the_whole_program(loop: str) -> None:
    """Otherwise a failure could be neither seen again nor shrunk."""
    for seed in range(20):
        first, second = (recorded(drawn(seed), loop) for _ in range(2))
        assert repr(first.program) == repr(second.program)
        assert [events(call) for call in first.calls] == [events(call) for call in second.calls]


def events(call: Call) -> tuple[Any, ...]:
    """What a call had and gave, and when; in which order a close cancels several is nobody's matter."""
    items = [life.item.id for life in call.lives]
    return (
        items,
        call.start.turn,
        call.start.time,
        [given.stamp.time for given in call.given.values()],
    )
