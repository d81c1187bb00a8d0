"""The fuzzer finds faults that were planted on purpose: a fuzzer that finds nothing may be blind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mutations import MUTATIONS, Mutation, hunted, planted

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_fuzzer_finds_a_planted_fault(mutation: Mutation, tmp_path: Path) -> None:
    """Within a few thousand programs, as many as the long run draws."""
    found = hunted(planted(mutation, tmp_path), mutation.loop, count=4000, seconds=240)
    assert found is not None, f"{mutation.name}: not found"
