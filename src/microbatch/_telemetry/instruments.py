"""The instruments, shared by all batchers of a meter provider, and the gauges that they observe."""

from __future__ import annotations

import operator
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from opentelemetry.metrics import (
    CallbackOptions,
    Counter,
    Histogram,
    Meter,
    MeterProvider,
    Observation,
)

from microbatch._pure.version import __version__

from . import names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .counted import Counted


class Instruments:
    """The instruments of one meter provider, shared by all that record there.

    Attributes:
        batchers: Those whose gauges are observed. Callbacks cannot be taken back, so there is one
            for each gauge and all batchers; one that is gone or closed is no longer among them.
        queues: What durable queues last counted: never is a file read for a reader's sake.
    """

    _all: ClassVar[weakref.WeakKeyDictionary[MeterProvider, Instruments]] = (
        weakref.WeakKeyDictionary()
    )

    @classmethod
    def of(cls, provider: MeterProvider) -> Instruments:
        """Return the instruments of a provider: one set, however many batchers there are."""
        found = cls._all.get(provider)
        if found is None:
            meter = provider.get_meter(names.SCOPE, __version__, schema_url=names.SCHEMA_URL)
            found = cls._all[provider] = cls(meter)
        return found

    def __init__(self, meter: Meter) -> None:
        self.batchers: weakref.WeakSet[Any] = weakref.WeakSet()
        self.queues: weakref.WeakSet[Counted] = weakref.WeakSet()
        histograms = {
            name: meter.create_histogram(
                name, unit, description, explicit_bucket_boundaries_advisory=bounds
            )
            for name, (unit, description, bounds) in names.HISTOGRAMS.items()
        }
        counters = {
            name: meter.create_counter(name, unit, description)
            for name, (unit, description) in names.COUNTERS.items()
        }
        self.batch_size: Histogram = histograms[names.BATCH_SIZE]
        self.batch_duration: Histogram = histograms["microbatch.batch.duration"]
        self.wait_duration: Histogram = histograms["microbatch.batch.wait.duration"]
        self.item_duration: Histogram = histograms["microbatch.item.duration"]
        self.job_duration: Histogram = histograms["microbatch.job.duration"]
        self.process_duration: Histogram = histograms["messaging.process.duration"]
        self.items: Counter = counters["microbatch.items"]
        self.retries: Counter = counters["microbatch.retries"]
        self.holds: Counter = counters["microbatch.holds"]
        self.job_items: Counter = counters["microbatch.job.items"]
        self.sent: Counter = counters["messaging.client.sent.messages"]
        self.consumed: Counter = counters["messaging.client.consumed.messages"]
        for name, (unit, description) in names.GAUGES.items():
            observe = partial(self._observe, name)
            meter.create_observable_up_down_counter(name, [observe], unit, description)
        for name, (kind, unit, description) in names.QUEUE_GAUGES.items():
            create = getattr(meter, f"create_observable_{kind}")
            create(name, [partial(self._observe_queues, name)], unit, description)

    def _observe(self, gauge: str, _: CallbackOptions) -> list[Observation]:
        """Return a gauge's values, in the reader's thread; batchers that share a name add up."""
        sums: dict[str, float] = {}
        for batcher in _members(self.batchers):
            value = batcher.figures().get(gauge)
            if value is not None:
                sums[batcher.name] = sums.get(batcher.name, 0) + value
        return [Observation(value, {names.NAME: name}) for name, value in sums.items()]

    def _observe_queues(self, gauge: str, _: CallbackOptions) -> list[Observation]:
        """Return a gauge's values as they were last counted.

        Queues of one name add up, but each place counts once, however many look at it; of ages the
        greatest is told. Lock waits are each queue's own.
        """
        counts: dict[tuple[str, object], Any] = {}
        for queue in _members(self.queues):
            stats = queue.jobs if gauge == "microbatch.job.open" else queue.stats
            if stats is not None:
                own = queue if gauge == "microbatch.queue.lock_waits" else queue.place
                counts[queue.name, own] = stats
        add = max if gauge == "microbatch.queue.oldest_age" else operator.add
        found: dict[tuple[str, str | None], float] = {}
        key, values_of = _COUNTS[gauge]
        for (name, _place), stats in counts.items():
            for value_of, value in values_of(stats).items():
                series = (name, value_of)
                found[series] = add(found[series], value) if series in found else value
        return [
            Observation(value, {names.NAME: name} | ({} if of is None else {key: of}))
            for (name, of), value in found.items()
        ]


#: Gauge: the attribute that tells its series apart, and their values in what a ``Counted`` keeps.
_COUNTS: Final[Mapping[str, tuple[str, Callable[[Any], dict[str | None, float]]]]] = {
    "microbatch.queue.depth": (
        names.STATE,
        lambda stats: {state: getattr(stats, state) for state in ("ready", "scheduled", "claimed")},
    ),
    "microbatch.queue.dead": ("", lambda stats: {None: stats.dead}),
    "microbatch.queue.oldest_age": ("", lambda stats: {None: stats.oldest_age}),
    "microbatch.queue.file.size": (
        names.FILE_PART,
        lambda stats: {"pages": stats.file_bytes, "log": stats.wal_bytes},
    ),
    "microbatch.queue.lock_waits": ("", lambda stats: {None: stats.lock_waits}),
    "microbatch.job.open": (names.JOB_LIFE, lambda jobs: jobs),
}


def _members(living: weakref.WeakSet[Any]) -> list[Any]:
    while True:
        try:
            return list(living)
        except RuntimeError:  # another thread added one meanwhile
            continue
