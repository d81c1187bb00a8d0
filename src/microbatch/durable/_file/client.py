"""One queue's seat at the writer of its file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from microbatch._pure.exceptions import BatcherClosed

from .asks import Awaited, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from microbatch._loops.protocol import Loop

    from .duty import Sign
    from .limits import Limits
    from .port import Port
    from .records import Step
    from .store import Hears
    from .transaction import WriteTransaction
    from .writer import Writer


class Want(NamedTuple):
    """What a consumer has room for: see `records.Demand`, whose consumer the writer knows.

    Attributes:
        enough: How many items need not wait for company any longer.
    """

    claim: int
    slots: int
    size: int
    enough: int


class Client:
    """One queue of one event loop at the writer of its file.

    What follows ``queue`` belongs to the writer's thread.

    Args:
        name: The queue's name in the file.
        limits: How much it may hold.
        port: Its event loop.
        poll_interval: Seconds between two looks at what others have committed, while it waits for that.
        synchronous: What it needs of the disk.
        attempts_max: How often an item of it may be tried; None if it has no handler.
        max_wait: Seconds that a ready item may wait for company before it is claimed.
        tells: Whether it wants to be told how jobs ended.
        hears: Told in the event loop of claims, each with its items' values where this process has them, and
            of the ids, as (first, count), of items that ended elsewhere; None means that any may have. Asked,
            in whatever thread, whether somebody waits for that.

    Attributes:
        writer: The file's writer; None while closed.
        queue: The queue's number in the file.
        consumer: The consumer's number; None without one.
        presence: Its sign of life.
        want: What it has room for; None for nothing.
        wanted_since: Since when something has been there for it and waited for company.
        rests_until: When it is tried again to give it something, after that failed.
        left: Whether it has given back what it had: only the rest of its closing is to come.
        polled: Whether the writer looks for what others commit.
        seen_ended: The last of the queue's endings that it was told of, ``seen_removed`` likewise;
            negative if some went by that it was not told of.
        telling: Whether it is being told so, and takes no other.
        abandoned: Jobs that came in and are being removed: while it leaves, if not before.
        holding: Jobs of which nothing begins here before their calls are over.
        claims: The claims that it was given and has not finished.
        on_lost: Called in the writer's thread when its event loop has ended without closing it.
    """

    def __init__(
        self,
        *,
        name: str,
        limits: Limits,
        port: Port,
        loop: Loop,
        poll_interval: float,
        synchronous: str,
        attempts_max: int | None,
        max_wait: float,
        tells: bool = False,
        hears: Hears,
    ) -> None:
        self.name = name
        self.limits = limits
        self.port = port
        self.loop = loop
        self.poll_interval = poll_interval
        self.synchronous = synchronous
        self.attempts_max = attempts_max
        self.max_wait = max_wait
        self.tells = tells
        self.telling = False
        self.hears = hears
        self.writer: Writer | None = None
        self.queue = 0
        self.consumer: int | None = None
        self.presence: Sign | None = None
        self.want: Want | None = None
        self.wanted_since: float | None = None
        self.rests_until = 0.0
        self.polled = False
        self.left = False
        self.seen_ended = -1
        self.seen_removed = -1
        self.abandoned: list[int] = []
        self.holding: set[int] = set()
        self.claims: set[int] = set()
        self.on_lost: Callable[[], object] = lambda: None
        self._parting = False
        self._calls: set[Any] = set()

    def lives(self) -> bool:
        """Tell whether its event loop still runs."""
        return not self.port.has_ended()

    def has_waited(self, now: float) -> bool:
        """Tell whether what is ready need not wait for company any longer."""
        since = self.wanted_since
        return not self.max_wait or (since is not None and now >= since + self.max_wait)

    # In the event loop

    def post(self, ask: Any) -> int:
        """Leave something in the writer's inbox; return how many bytes of new items are in it then."""
        assert self.writer is not None  # noqa: S101 - it is open
        return self.writer.post(ask)

    async def call(
        self,
        function: Callable[[WriteTransaction], Generator[Step, Any, Any]],
        *,
        items: int = 0,
        size: int = 0,
        last: bool = False,
    ) -> Any:
        """Do something within the next transaction; return its answer once that is on the disk.

        Cancellation stops the waiting only. After the ``last`` ones nobody would answer any more.

        Raises:
            QueueUnavailable: If the file cannot be used.
            BatcherClosed: If one of the last was before this.
        """
        if self._parting and not last:
            raise BatcherClosed(self.name)
        self._parting = last
        waiter = self.loop.create_waiter()
        self.post(Awaited(self, function, waiter, items=items, size=size))
        self._calls.add(waiter)
        try:
            return await waiter
        finally:
            self._calls.discard(waiter)

    def give_up(self) -> None:
        """Let nobody wait any more for the writer, which may be stuck: it does what was asked all the same."""
        for waiter in self._calls:
            if not waiter.done():
                waiter.set_exception(BatcherClosed(self.name, started=True))

    async def turn(self, stop: Callable[[], object]) -> Turn:
        """Wait until the writer stands aside for another connection; whoever gets this ends it."""
        turn = Turn(self, self.loop.create_waiter(), stop)
        self.post(turn)
        try:
            await turn.granted
        except BaseException:
            turn.over.set()
            raise
        return turn

    def ask_for(self, want: Want | None, instead: Want | None) -> None:
        """Say what there is room for, instead of what was said before and has not been answered yet."""

        def note() -> None:
            if instead is None or self.want is instead:
                self.want = want

        self.post(note)

    async def ask_for_nothing(self) -> None:
        """Take back what was asked for; once this returns no more claims come."""
        waiter = self.loop.create_waiter()

        def note() -> None:
            self.want = None
            self.port.deliver([(wake, waiter)])

        self.post(note)
        await waiter

    def wake_if_asleep(self) -> None:
        """Let the writer look at what others commit: somebody here waits for that now."""
        if not self.polled or self.seen_ended < 0:
            assert self.writer is not None  # noqa: S101 - it is open
            self.writer.post(self.writer.look)


def wake(waiter: Any) -> None:
    """Wake who waits with a future; nothing happens if he has gone."""
    if not waiter.done():
        waiter.set_result(None)
