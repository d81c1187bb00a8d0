"""Who waits for room, and what the user's functions say of an item before it may come in."""

from __future__ import annotations

import numbers
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from microbatch._pure.exceptions import ItemTooHeavy

from .entry import Entry
from .waiters import Member

if TYPE_CHECKING:
    from .rules import Rules
    from .waiters import Group


class Feed:
    """What of a ``submit_many`` still waits for room.

    Attributes:
        group: The items' one caller.
        context: That caller's.
        items: All of its items.
        position: The first one that is not in yet.
        priority: Theirs.
        ready: The entry of that first one, once somebody asked for it.
        taken: How many went in from here.
    """

    __slots__ = (
        "context",
        "group",
        "items",
        "position",
        "priority",
        "queued",
        "ready",
        "seq",
        "taken",
    )

    def __init__(self, group: Group, items: list[Any], position: int, priority: float) -> None:
        self.group: Group = group
        self.context: Context = (
            copy_context()
        )  # the caller's: who makes room later is somebody else
        self.items: list[Any] = items
        self.position: int = position
        self.priority: float = priority
        self.ready: Entry | None = None
        self.taken: int = 0
        self.seq: int = 0
        self.queued: bool = False

    @property
    def left(self) -> int:
        """Return how many items are not in yet."""
        return len(self.items) - self.position

    def weigh_next(self, rules: Rules) -> None:
        """Ask the user's functions about the next item, in its caller's context.

        Raises:
            Exception: What they raise.
        """
        index, own = self.position, self.group.contexts
        context = self.context if own is None else own[index]
        entry = context.run(entry_of, rules, self.items[index], self.priority)
        entry.waiter = Member((self.group, index))
        self.ready = entry

    def refuse_next(self, error: Exception) -> None:
        """Fail the next item, and step on."""
        self.ready = None
        self.position += 1
        self.group.fail(self.position - 1, error)

    def advance(self) -> None:
        """Step on after one item went in."""
        self.ready = None
        self.position += 1
        self.taken += 1


def entry_of(rules: Rules, item: Any, priority: float) -> Entry:
    """Ask the user's functions about an item; what they raise is its caller's."""
    units = 0 if rules.weigh is None else _units(rules, rules.weigh(item))
    entry = Entry(item, None, priority=priority, weight=units)
    if rules.partition is not None:
        entry.partition = rules.partition(item)
        _check_hashable("partition", entry.partition)
    if rules.coalesce is not None:
        key = rules.coalesce(item)
        _check_hashable("coalesce", key)
        entry.key = (key,)
    if rules.capture_context:
        entry.context = copy_context()
    return entry


def _units(rules: Rules, weight: Any) -> int:
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        raise TypeError(f"weigh must return a number, got {weight!r}")
    given: Any = weight
    if not 0 <= given < float("inf"):
        raise ValueError(f"weigh must return a finite number of at least 0, got {given}")
    for name in ("max_batch_weight", "max_pending_weight"):
        allowed = getattr(rules, name)
        if allowed is not None and given > allowed:
            raise ItemTooHeavy(given, allowed, name, rules.name)
    return rules.scale.units(given)


def priority_of(value: Any) -> float:
    """Return a priority as a plain number, which compares without code of others."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"priority must be a number, got {value!r}")
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    if number != number:  # noqa: PLR0124 - NaN, which is in no order to any other
        raise TypeError(f"priority must be a number, got {value!r}")
    return number


def _check_hashable(name: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"{name} must return a hashable value, got {value!r}") from None
