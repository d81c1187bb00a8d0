"""How many items a principal may send: a token bucket for each, in this process."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from ._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

#: Buckets that are kept at once, some 10 MB of them. Beyond, the one asked for longest ago is forgotten,
#: and full again.
_PRINCIPALS_MAX = 100_000


class Buckets:
    """A token bucket for each principal: ``items`` at once, and as many again in ``seconds``.

    Args:
        items: How many it holds.
        seconds: How long an empty one takes to be full.
        now: The clock, in seconds.
    """

    def __init__(self, items: int, seconds: float, now: Callable[[], float]) -> None:
        self._items = items
        self._seconds = seconds
        self._now = now
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._policy = f'"default";q={items};w={math.ceil(seconds)}'

    def __len__(self) -> int:
        """Return how many buckets are kept."""
        return len(self._left)

    def take(self, principal: str, items: int, headers: dict[str, str]) -> None:
        """Take items from a principal's bucket, and say in the headers of the answer what is left.

        Raises:
            Problem: 413 if the bucket can never hold so many, 429 if it does not now. Nothing is taken then.
        """
        now = self._now()
        left, since = self._left.get(principal, (float(self._items), now))
        left = min(self._items, left + (now - since) * self._items / self._seconds)
        enough = items <= left
        if enough:
            left -= items
        self._left[principal] = (left, now)
        self._left.move_to_end(principal)
        if len(self._left) > _PRINCIPALS_MAX:
            self._left.popitem(last=False)
        full_in = (self._items - left) * self._seconds / self._items
        headers["ratelimit-policy"] = self._policy
        headers["ratelimit"] = f'"default";r={int(left)};t={math.ceil(full_in)}'
        if enough:
            return
        if items > self._items:
            raise Problem(
                413,
                f"a request may have at most {self._items} items, got {items}",
                type="batch-too-large",
                max_items=self._items,
            )
        raise Problem(
            429,
            "too many items in this time: try again later",
            type="rate-limited",
            retry_after=(items - left) * self._seconds / self._items,
        )
