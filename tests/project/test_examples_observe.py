"""examples/observe.py: a real path, from the SDK over OTLP to a collector, and to Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from examples_support import output_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def test_observe_shows_batches_with_their_links(tmp_path: Path) -> None:
    """What arrives over HTTP as protobuf is what the library promised."""
    *batches, metrics, good, missing = output_of("observe.py", folder=tmp_path).splitlines()
    assert [line.partition(", linked to ")[0] for line in batches] == [
        "process cities: 5 items, reason size, 1 failed",
        "process cities: 5 items, reason size, 2 failed",
        "process cities: 2 items, reason idle, 1 failed",
    ]
    linked = [line.partition(", linked to ")[2].split(", ") for line in batches]
    assert [len(numbers) for numbers in linked] == [5, 5, 2]
    assert sorted(n for numbers in linked for n in numbers) == sorted([*"012345"] * 2)
    assert metrics.split() == [
        "metrics:",
        "microbatch.batch.duration",
        "microbatch.batch.size",
        "microbatch.batch.wait.duration",
        "microbatch.items",
    ]
    assert good.startswith('microbatch_items_total{error_type="",')
    assert good.endswith(" 8.0")
    assert missing.startswith('microbatch_items_total{error_type="missing",')
    assert missing.endswith(" 4.0")
