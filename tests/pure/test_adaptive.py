"""adaptive: a batch size that learns from how long batches took."""

from __future__ import annotations

import random
import re
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import programs

from microbatch import AdaptiveSize


def backend(size: int, *, knee: int = 300) -> float:
    """Seconds of a call: 10 ms by itself, 0.1 ms an item, and steeply more beyond the knee."""
    return 0.01 + 0.0001 * size + 0.00001 * max(0, size - knee) ** 2


def settle(adaptive: AdaptiveSize, calls: int, *, knee: int = 300) -> list[int]:
    sizes = []
    for _ in range(calls):
        adaptive.record(adaptive.size, backend(adaptive.size, knee=knee), failed=False)
        sizes.append(adaptive.size)
    return sizes


def test_the_size_follows_a_knee_that_moves_down() -> None:
    """Backends get slower too."""
    adaptive = AdaptiveSize(1, 1000)
    settle(adaptive, 300, knee=500)
    assert max(settle(adaptive, 900, knee=300)[-100:]) <= 360


@pytest.mark.parametrize("noise", [0.01, 0.02])
@pytest.mark.parametrize("overhead", [0.001, 0.01, 0.05])
def test_small_losses_add_up(overhead: float, noise: float) -> None:
    """A size must not creep to where items cost twice as much, each step within what a timing can tell."""

    def cost(size: int) -> float:
        return (overhead + 0.0001 * size + 0.000001 * max(0, size - 300) ** 2) / size

    adaptive, chance = AdaptiveSize(1, 1000), random.Random(1)
    costs = []
    for _ in range(1500):
        size = adaptive.size
        costs.append(cost(size))
        adaptive.record(size, cost(size) * size * (1 + noise * chance.uniform(-1, 1)), failed=False)
    assert statistics.mean(costs[-300:]) < 1.1 * min(cost(size) for size in range(1, 1001))


@pytest.mark.parametrize("maximum", [600, 1000])
def test_the_size_settles_near_the_knee(maximum: int) -> None:
    """Where a batch more costs more: within a fifth, from 100 calls on, and it stays there."""
    adaptive = AdaptiveSize(1, maximum)
    sizes = settle(adaptive, 500)[100:]
    assert min(sizes) >= 240
    assert max(sizes) <= 360


def test_the_size_follows_a_knee_that_moves_up() -> None:
    """Backends get faster while a service runs."""
    adaptive = AdaptiveSize(1, 1000)
    settle(adaptive, 300, knee=300)
    assert min(settle(adaptive, 600, knee=500)[-100:]) >= 400


def test_an_error_halves_the_size_and_a_burst_brings_it_to_the_minimum() -> None:
    """As TCP does: a failure may mean overload. Later it grows again."""
    adaptive = AdaptiveSize(10, 1000)
    settle(adaptive, 100)
    before = adaptive.size
    sizes = []
    for _ in range(8):
        adaptive.record(adaptive.size, 0.01, failed=True)
        sizes.append(adaptive.size)
    assert sizes[0] == before // 2
    assert sizes[1] == before // 4
    assert sizes[-1] == 10
    assert 240 <= settle(adaptive, 100)[-1] <= 360


def test_a_slow_call_takes_a_tenth() -> None:
    """Slowness is a matter of degree; exactly the target is not over it."""
    adaptive = AdaptiveSize(100, 1000, target=0.5)
    adaptive.record(100, 0.5, failed=False)
    assert adaptive.size == 114  # a step of (1000 - 100) // 64
    adaptive.record(114, 0.51, failed=False)
    assert adaptive.size == 102  # int(114 * 0.9)
    adaptive.record(102, 0.51, failed=False)
    assert adaptive.size == 100


def test_the_size_stays_under_the_target() -> None:
    """A handler of 1 ms an item, 0.1 s allowed: near 100 items, never far over."""
    adaptive = AdaptiveSize(1, 1000, target=0.1)
    sizes = []
    for _ in range(300):
        adaptive.record(adaptive.size, 0.02 + 0.001 * adaptive.size, failed=False)
        sizes.append(adaptive.size)
    assert min(sizes[50:]) >= 50
    assert max(sizes) <= 96


def test_the_first_full_batch_adds_a_step() -> None:
    """Nothing to compare with yet: try more. A step is 1/64 of the range, at least 1."""
    for minimum, maximum, step in [(1, 641, 10), (5, 69, 1), (5, 20, 1), (7, 135, 2)]:
        adaptive = AdaptiveSize(minimum, maximum)
        assert adaptive.size == minimum
        adaptive.record(minimum, 0.01, failed=False)
        assert adaptive.size == minimum + step


def test_batches_that_were_not_full_teach_nothing() -> None:
    """At night they are small; the size for the day must not suffer. Failures count all the same."""
    adaptive = AdaptiveSize(10, 1000)
    settle(adaptive, 100)
    before = adaptive.size
    for _ in range(100):
        adaptive.record(before - 1, 0.9, failed=False)
    assert adaptive.size == before
    adaptive.record(1, 1.1, failed=False)
    assert adaptive.size == int(before * 0.9)
    adaptive.record(1, 0.1, failed=True)
    assert adaptive.size == int(int(before * 0.9) * 0.5)


def test_a_batch_larger_than_the_size_is_a_full_one() -> None:
    """The size may have shrunk while the batch was on its way."""
    adaptive = AdaptiveSize(10, 74)
    adaptive.record(20, 0.01, failed=False)
    assert adaptive.size == 11


def test_a_size_that_costs_the_same_is_held_and_tried_again_later() -> None:
    """Within what a timing can tell nothing moves; after 21 calls one step more is tried."""
    adaptive = AdaptiveSize(64, 128)
    adaptive.record(64, 0.064, failed=False)
    assert adaptive.size == 65
    sizes = []
    for _ in range(22):
        adaptive.record(adaptive.size, adaptive.size * 0.001, failed=False)
        sizes.append(adaptive.size)
    assert sizes == [65] * 20 + [66] * 2


def test_a_size_that_made_items_dearer_is_taken_back_and_then_held() -> None:
    """Patience begins anew: 21 calls at the same cost before one step more."""
    adaptive = AdaptiveSize(64, 128)
    adaptive.record(64, 0.064, failed=False)
    assert adaptive.size == 65
    adaptive.record(65, 0.065 * 1.1, failed=False)
    assert adaptive.size == 64
    sizes = []
    for _ in range(21):
        adaptive.record(adaptive.size, adaptive.size * 0.0011, failed=False)
        sizes.append(adaptive.size)
    assert sizes == [64] * 20 + [65]


@given(
    st.integers(1, 50),
    st.integers(0, 5000),
    programs(st.tuples(st.integers(1, 6000), st.floats(0, 100), st.booleans(), st.booleans()), 80),
)
def test_the_size_never_leaves_its_range(
    minimum: int, span: int, calls: list[tuple[int, float, bool, bool]]
) -> None:
    """Whatever it is told."""
    adaptive = AdaptiveSize(minimum, minimum + span)
    for size, seconds, full, failed in calls:
        adaptive.record(adaptive.size if full else size, seconds, failed=failed)
        assert minimum <= adaptive.size <= minimum + span
        assert type(adaptive.size) is int


def test_a_range_of_one_size_stays_there() -> None:
    """Then it is a number like any other."""
    adaptive = AdaptiveSize(5, 5)
    for seconds, failed in [(0.1, False), (0.01, False), (9.0, False), (0.1, True)]:
        adaptive.record(5, seconds, failed=failed)
        assert adaptive.size == 5


@pytest.mark.parametrize(
    ("args", "settings", "kind", "message"),
    [
        ((0, 5), {}, ValueError, "minimum must be at least 1, got 0"),
        ((1.5, 5), {}, TypeError, "minimum must be an int, got 1.5"),
        ((1, 0), {}, ValueError, "maximum must be at least 1, got 0"),
        ((1, "9"), {}, TypeError, "maximum must be an int, got '9'"),
        ((5, 4), {}, ValueError, "maximum must be at least minimum=5, got 4"),
        ((1, 5), {"target": 0}, ValueError, "target must be greater than 0, got 0"),
        ((1, 5), {"target": "1"}, TypeError, "target must be a number, got '1'"),
    ],
)
def test_wrong_numbers_are_refused_by_name(
    args: Any, settings: Any, kind: type[Exception], message: str
) -> None:
    """Name, rule, value."""
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        AdaptiveSize(*args, **settings)


def test_the_settings_can_be_read() -> None:
    """And the target is a second unless told otherwise."""
    adaptive = AdaptiveSize(2, 9)
    assert (adaptive.minimum, adaptive.maximum, adaptive.target, adaptive.size) == (2, 9, 1.0, 2)
    assert AdaptiveSize(1, 1, target=0.5).target == 0.5
