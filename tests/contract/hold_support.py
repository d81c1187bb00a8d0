"""A backend that says "not now", for the tests of holds."""

from __future__ import annotations

from typing import Any

import anyio
from support import Recorder

from microbatch import Backoff, RateLimited, Retry

EXACT = Backoff(initial=1.0, factor=2.0, jitter=0.0)


def holding(**settings: Any) -> Retry:
    """Return a Retry that sends no failed item again, so that whatever goes again was refused."""
    return Retry(**{"on": ZeroDivisionError, "backoff": EXACT} | settings)


class Busy(Recorder):
    """A handler that refuses its first calls, as it is told, and then multiplies by ten.

    Args:
        refusals: For each call what it is refused with: seconds or None; "ok" for a call that is not.
        seconds: How long each call takes.
        returns: Return the refusal in the items' places, instead of raising it.
    """

    def __init__(
        self, *refusals: Any, seconds: float = 0.0, returns: bool = False, fails: Any = ()
    ) -> None:
        super().__init__(seconds, fails)
        self.refusals = list(refusals)
        self.returns = returns

    async def __call__(self, items: list[Any]) -> list[Any]:
        refusal = self.refusals.pop(0) if self.refusals else "ok"
        results = await super().__call__(items)
        if refusal == "ok":
            return results
        if self.returns:
            return [RateLimited(retry_after=refusal)] * len(items)
        raise RateLimited(retry_after=refusal)


class Window:
    """A backend that takes so many calls and then none for a while, and says for how long.

    Attributes:
        calls: When each call came, which window it came in, and whether it was refused.
    """

    def __init__(self, every: int = 5, seconds: float = 0.5, takes: float = 0.05) -> None:
        self.every = every
        self.seconds = seconds
        self.takes = takes
        self.taken = 0
        self.shut_until = -1.0
        self.windows = 0
        self.calls: list[tuple[float, int, bool]] = []
        self.running = 0
        self.probing = 0  # calls beside the first one after a window

    async def __call__(self, items: list[Any]) -> list[Any]:
        now = anyio.current_time()
        refused = now < self.shut_until
        self.calls.append((now, self.windows, refused))
        if refused:
            raise RateLimited(retry_after=self.shut_until - now)
        self.taken += 1
        if self.taken % self.every == 0:
            self.shut_until = now + self.seconds
            self.windows += 1
        await anyio.sleep(self.takes)
        return [item * 10 for item in items]

    @property
    def refused(self) -> list[int]:
        """The window of each refused call."""
        return [window for _, window, refused in self.calls if refused]
