"""The page's queues, and what each is called in addresses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from microbatch.durable import DurableQueue
from microbatch.durable.insight import Insight

if TYPE_CHECKING:
    from collections.abc import Iterable


class Places:
    """Queues by a name that can stand in an address: two queues of one name, in two files, have two.

    Args:
        queues: DurableQueue or DurableBatcher objects.

    Attributes:
        by_slug: Each of them.
        slug_of: The other way.
        title_of: What each is called on the page: with its file where there are several.

    Raises:
        TypeError: If they are no such objects.
        ValueError: If there is none, or one comes twice.
    """

    def __init__(self, queues: Iterable[DurableQueue[Any, Any]] | DurableQueue[Any, Any]) -> None:
        found: list[Any] = [queues] if isinstance(queues, DurableQueue) else list(queues)
        wrong = next((one for one in found if not isinstance(one, DurableQueue)), None)
        if wrong is not None:
            message = (
                f"queues must be DurableQueue or DurableBatcher objects, got {type(wrong).__name__}"
            )
            raise TypeError(message)
        if not found:
            raise ValueError("queues must hold at least one queue")
        if len({id(one) for one in found}) < len(found):
            raise ValueError("queues must hold each queue once")
        self.by_slug: dict[str, Insight] = {}
        for queue in found:
            insight = Insight(queue)
            self.by_slug[self._free_slug(insight.name)] = insight
        self.slug_of: dict[Insight, str] = {one: slug for slug, one in self.by_slug.items()}
        several = len({one.path for one in self.slug_of}) > 1
        self.title_of: dict[Insight, str] = {
            one: f"{one.name} in {one.path.name}" if several else one.name for one in self.slug_of
        }

    def _free_slug(self, name: str) -> str:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-") or "queue"
        slug, number = plain, 1
        while slug in self.by_slug:
            number += 1
            slug = f"{plain}~{number}"
        return slug
