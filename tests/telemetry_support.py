"""An SDK of its own for each test: spans and figures kept in memory, nothing global."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from microbatch import Telemetry


def plain(attributes: Any) -> dict[str, Any]:
    return dict(attributes or {})


class Sdk:
    """What an application sets up, with everything at hand that came out of it."""

    def __init__(self, sampler: sampling.Sampler = sampling.ALWAYS_ON) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        # What describes the machine would be looked for in all that is installed.
        nothing = Resource.get_empty()
        self.tracer_provider = TracerProvider(
            sampler=sampler, resource=nothing, shutdown_on_exit=False
        )
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meter_provider = MeterProvider(
            [self._reader], resource=nothing, shutdown_on_exit=False
        )
        self.tracer = self.tracer_provider.get_tracer("test")
        self.scope: tuple[str, str | None, str | None] | None = None

    def telemetry(self, **settings: Any) -> Telemetry:
        return Telemetry(
            tracer_provider=self.tracer_provider, meter_provider=self.meter_provider, **settings
        )

    def all_spans(self) -> list[ReadableSpan]:
        """Every span that has ended, in that order."""
        return list(self._exporter.get_finished_spans())

    def spans(self, name: str) -> list[Any]:
        return [span for span in self.all_spans() if span.name == name]

    def metrics(self) -> dict[str, Any]:
        """Collect, and return each metric by its name."""
        data = self._reader.get_metrics_data()
        found = {}
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                self.scope = (scope.scope.name, scope.scope.version, scope.scope.schema_url)
                found.update({metric.name: metric for metric in scope.metrics})
        return {name: metric for name, metric in found.items() if metric.data.data_points}

    def points(self, name: str) -> list[Any]:
        metric = self.metrics().get(name)
        return [] if metric is None else list(metric.data.data_points)

    def counts(self, name: str) -> dict[str | None, int]:
        """A counter's values by ``error.type``."""
        return {point.attributes.get("error.type"): point.value for point in self.points(name)}

    def gauges(self) -> dict[str, float]:
        names = ("microbatch.queue", "microbatch.item.inflight")
        return {
            name: sum(point.value for point in metric.data.data_points)
            for name, metric in self.metrics().items()
            if name.startswith(names)
        }

    def names(self) -> set[str]:
        """The batchers that have a gauge."""
        return {
            point.attributes["microbatch.batcher.name"]
            for point in self.points("microbatch.queue.size")
        }


async def echo(items: list[Any]) -> list[Any]:
    return items


async def under(sdk: Sdk, name: str, submit: Any, *items: Any) -> Any:
    """Submit inside a span of the caller's own."""
    with sdk.tracer.start_as_current_span(name):
        return await submit(*items)


class BrokenSampler(sampling.Sampler):
    """Raises, as nobody's code should."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def should_sample(
        self, parent_context: Any, trace_id: int, name: str, *_: Any, **__: Any
    ) -> Any:
        if name.startswith(self.names):
            raise ZeroDivisionError
        return sampling.SamplingResult(sampling.Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "broken"
