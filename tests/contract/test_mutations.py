"""The fuzzer finds faults that were planted on purpose: a fuzzer that finds nothing may be blind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mutations import MUTATIONS, Mutation, copied, hunted, planted

if TYPE_CHECKING:
    from pathlib import Path

#: Programs within which each must be found.
COUNT = 4000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_package_as_it_is_breaks_no_law(tmp_path: Path) -> None:
    """Otherwise what is found below may not be what was planted."""
    assert hunted(copied(tmp_path), "asyncio", count=COUNT, seconds=550) is None


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_fuzzer_finds_a_planted_fault(mutation: Mutation, tmp_path: Path) -> None:
    """As many programs as find nothing in the package as it is."""
    found = hunted(planted(mutation, tmp_path), mutation.loop, count=COUNT, seconds=550)
    assert found is not None, f"{mutation.name}: not found"
