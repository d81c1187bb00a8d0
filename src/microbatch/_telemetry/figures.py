"""What a batch that has ended amounts to."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from microbatch._pure.exceptions import Skipped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .kinds import Kind
    from .seen import SeenRun


class Figures:
    """What became of a run's items, and how long that took.

    Args:
        run: The run.
        now: The loop's clock.
        durable: True for a durable queue's: its waiters take every failure, so among a run's errors are
            those of items that go again.

    Attributes:
        duration: Seconds from its beginning to now.
        wait: Seconds that its oldest item had waited.
        errors: How many failed or were skipped, by kind.
        succeeded, failed, skipped, retried: How many items; with those held all of them.
    """

    # Of most batches: what is not set costs nothing.
    errors: Mapping[Kind, int] = MappingProxyType({})
    failed: int = 0
    skipped: int = 0
    retried: int = 0

    def __init__(self, run: SeenRun, now: float, *, durable: bool) -> None:
        self.duration: float = max(0.0, now - run.started)
        self.wait: float = max(0.0, run.started - run.since)
        self.succeeded: int = run.size - run.held
        if run.errors is not None or run.retried is not None:
            self._subtract(run.errors or {}, run.retried or {}, durable=durable)

    def _subtract(
        self, errors: Mapping[Kind, int], retried: Mapping[Kind, int], *, durable: bool
    ) -> None:
        if durable and retried:
            ended = ((kind, count - retried.get(kind, 0)) for kind, count in errors.items())
            errors = {kind: count for kind, count in ended if count}
        self.errors = errors
        self.skipped = sum(n for (cls, _), n in errors.items() if issubclass(cls, Skipped))
        self.failed = sum(errors.values()) - self.skipped
        self.retried = sum(retried.values())
        self.succeeded -= self.failed + self.skipped + self.retried
