"""scale: weights as whole numbers, which add up exactly."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbatch._core.scale import Scale

pytestmark = [pytest.mark.timeout(180)]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=30), st.integers(0, 4), st.randoms())
def test_decimal_weights_add_up_as_they_are_written(
    numbers: list[int], places: int, random: Any
) -> None:
    """Ten times 0.1 is 1, in whatever order; and what goes out leaves no residue."""
    scale = Scale(10_000.0, 10_000.0)
    units = [scale.units(number / 10**places) for number in numbers]
    assert sum(units) == scale.units(sum(numbers)) // 10**places
    random.shuffle(units)
    assert scale.weight(sum(units)) == sum(numbers) / 10**places


@pytest.mark.parametrize("limit", [5, 0.3, 1e-9, 1e-280, 1e300, 2**80, 10**30])
def test_a_limit_of_any_magnitude_is_told_from_what_is_beside_it(limit: float) -> None:
    """To the last of 14 digits, and exactly where numbers are whole."""
    scale = Scale(limit, None)
    below, above = (float(limit) * (1 + part) for part in (-1e-14, 1e-14))
    assert scale.units(below) < scale.units(limit) < scale.units(above)
    assert scale.weight(scale.units(limit)) == float(limit)


@pytest.mark.parametrize("kind", [float, Fraction, np.float64, np.float32, np.int32, np.uint8, int])
def test_weights_of_any_kind_of_number_are_counted_alike(kind: Any) -> None:
    """NumPy's integers wrap around when they are added up."""
    scale = Scale(1000, None)
    assert sum([scale.units(kind(200))] * 5) == scale.units(1000)
