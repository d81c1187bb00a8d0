"""Layers: functions that take a handler and give back a better one.

Each returns an async function from a list of items to a list of results, so they nest, fit around
one another's results, and take any decorator for async functions beside them. A `Batcher` runs the
outcome, but none of them needs one.
"""

from ._atomic import atomic
from ._bisecting import bisecting
from ._by_key import by_key
from ._in_process import WorkerDied, in_process
from ._per_item import per_item
from ._rate_limited import rate_limited
from ._routed import routed
from ._validated import validated

__all__ = [
    "WorkerDied",
    "atomic",
    "bisecting",
    "by_key",
    "in_process",
    "per_item",
    "rate_limited",
    "routed",
    "validated",
]
