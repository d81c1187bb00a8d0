"""Claims that their backend refused: this process keeps them until it may be asked again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microbatch._core.hold import Hold, Holds
from microbatch._core.holding import is_passed_over, note_spent, refuse, tell_unheld

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from microbatch._core.entry import Entry
    from microbatch._core.run import Run
    from microbatch._loops.protocol import Handle, Loop
    from microbatch._pure.retry import Retry

    from .parcel import Parcel


class Waiting:
    """A partition that waits for its backend.

    Attributes:
        partition: Which one.
        hold: How it waits.
        parcels: What of it may not begin, the oldest first.
    """

    __slots__ = ("hold", "parcels", "partition")

    def __init__(self, partition: Hashable) -> None:
        self.partition: Hashable = partition
        self.hold: Hold = Hold()
        self.parcels: list[Parcel] = []


class Kept:
    """Decides about refused items, and keeps the parcels of partitions that wait.

    Args:
        name: The queue's, for logs.
        retry: How long partitions wait, and how often.
        enter: Gives a parcel to the engine.
        recall: Called with a partition whose parcels may not begin any more.
        on_room: Called when a time is over and nothing of it waits here.

    Attributes:
        now: The loop's clock.
        loop: The loop.
        closing: True once nothing waits here any more.
        parked: How many parcels wait here.
    """

    __slots__ = (
        "_enter",
        "_handle",
        "_holds",
        "_name",
        "_on_room",
        "_recall",
        "_retry",
        "_waiting",
        "closing",
        "loop",
        "now",
        "parked",
    )

    def __init__(
        self,
        name: str,
        retry: Retry,
        *,
        enter: Callable[[Parcel], None],
        recall: Callable[[Hashable], None],
        on_room: Callable[[], None],
    ) -> None:
        self._name = name
        self._retry = retry
        self._enter = enter
        self._recall = recall
        self._on_room = on_room
        self._waiting: dict[Hashable, Waiting] = {}
        self._holds: Holds = Holds()
        self._handle: Handle | None = None
        self.closing: bool = False
        self.parked: int = 0
        self.now: Callable[[], float]
        self.loop: Loop

    def slots(self, partition: Hashable, free: int) -> int:
        """Return how many handler calls of a partition may begin, of those that are free."""
        waiting = self._waiting.get(partition)
        if waiting is None or not waiting.hold.awaited:
            return free
        return 0 if waiting.hold.closed else min(1, free)

    # What the engine asks

    def takes(
        self, run: Run, index: int, waiter: Any, entry: Entry | None, error: Exception
    ) -> bool:
        """Take back a refused item, if it may wait; tell whether. Its partition waits either way."""
        parcel: Parcel = waiter[0]
        run.teaches = False
        if self.closing:  # it goes back to the disk
            parcel.keep_one(index)
            return True
        waiting = self._waiting.get(parcel.partition)
        if waiting is None:
            waiting = self._waiting[parcel.partition] = Waiting(parcel.partition)
        hold = waiting.hold
        try:
            refusal = refuse(hold, error, parcel.era, self._retry, self.now())
        except Exception:  # noqa: BLE001 - a subclass's own: the item fails with its own error
            tell_unheld(self._name)
            return False
        if refusal.waits:
            self._holds.add(waiting)
            self._recall(parcel.partition)
            self._set_timer()
        if refusal.began:
            run.began_hold, run.spent = True, refusal.spent
        probing = index == 0 and parcel.probing
        if run.spent or (probing and is_passed_over(hold, parcel.ids[0], self._retry)):
            note_spent(self._name, error)
            return False
        parcel.keep_one(index)
        return True

    # What hands tell

    def admits(self, parcel: Parcel) -> bool:
        """Tell whether a parcel may begin now; one that may not is kept."""
        waiting = self._waiting.get(parcel.partition)
        if waiting is None:
            parcel.era, parcel.probing = 0, False
            return True
        if waiting.hold.closed:
            self.keep(parcel)
            return False
        parcel.era, parcel.probing = waiting.hold.era, waiting.hold.awaited
        waiting.hold.leave(parcel)
        return True

    def keep(self, parcel: Parcel) -> None:
        """Keep a parcel whose partition waits."""
        parcels = self._waiting[parcel.partition].parcels
        parcels.append(parcel)
        self.parked += 1
        parcels.sort(key=lambda one: (one.claim, one.ids[0]))

    def withdraw(self, parcel: Parcel) -> None:
        """Do without a parcel that has not begun; if it was to go first, another one may."""
        waiting = self._waiting.get(parcel.partition)
        if waiting is None:
            return
        if parcel in waiting.parcels:
            waiting.parcels.remove(parcel)
            self.parked -= 1
        elif waiting.hold.probe is parcel:
            waiting.hold.probe = None

    def go_on(self, partition: Hashable) -> None:
        """Let one go first where one may, and none does."""
        waiting = self._waiting.get(partition)
        if waiting is not None and waiting.parcels and not waiting.hold.closed:
            self._release(waiting.parcels.pop(0))

    def _release(self, parcel: Parcel) -> None:
        self.parked -= 1
        self.admits(parcel)
        self._enter(parcel)

    def succeeded(self, parcel: Parcel) -> None:
        """Tell that an item has succeeded: the backend takes some again."""
        waiting = self._waiting.get(parcel.partition)
        if waiting is not None:
            waiting.hold.refusals = 0

    def ended(self, parcel: Parcel) -> None:
        """Tell that a parcel's call has ended: if it was a probe without a refusal, the others go."""
        waiting = self._waiting.get(parcel.partition)
        if waiting is None:
            return
        waiting.hold.come_back(parcel)
        if not waiting.hold.awaited:
            parcels, waiting.parcels = waiting.parcels, []
            if waiting.partition is not None or not waiting.hold.refusals:
                del self._waiting[parcel.partition]  # there may be a million of them
            for one in parcels:
                self._release(one)

    def close(self) -> None:
        """Let nothing become due any more."""
        self.closing = True
        self.parked = 0
        self._holds.clear()
        self._waiting.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    # Time

    def _set_timer(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        when = self._holds.deadline()
        if when is not None:
            self._handle = self.loop.call_at(when, lambda: self._ring(when))

    def _ring(self, when: float) -> None:
        """Partitions' time is over: of each one parcel goes first."""
        self._handle = None
        for waiting in self._holds.over(max(when, self.now())):
            if waiting.parcels:
                self._release(waiting.parcels.pop(0))
            elif waiting.partition is not None:
                self._waiting.pop(waiting.partition, None)  # whoever comes begins anew
        self._set_timer()
        self._on_room()
