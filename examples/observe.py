"""See every batch from outside: traces and metrics over OTLP, and the same metrics for Prometheus.

    python examples/observe.py

Twelve requests, each with a span of its own, look up cities; a batcher makes three queries of them.
The SDK sends spans and figures over HTTP, as protobuf, to a collector: here a small one of the
example's own, which decodes them and prints each batch with the requests that it is linked to. A real
one takes their place by ``OTEL_EXPORTER_OTLP_ENDPOINT``. Prometheus scrapes the same figures.
"""

import asyncio
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import start_http_server

from microbatch import Batcher, ItemError, Telemetry

CITIES = {1: "Ulm", 2: "Bern", 3: "Graz", 4: "Brno"}


class Collector(BaseHTTPRequestHandler):
    """Decodes what the SDK posts to /v1/traces and /v1/metrics."""

    spans: dict[bytes, Any]
    metrics: dict[str, Any]

    def do_POST(self) -> None:
        """Take one export."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/traces":
            traces = ExportTraceServiceRequest.FromString(body)
            for scope in (scope for r in traces.resource_spans for scope in r.scope_spans):
                self.spans.update({span.span_id: span for span in scope.spans})
        else:
            figures = ExportMetricsServiceRequest.FromString(body)
            for scope in (scope for r in figures.resource_metrics for scope in r.scope_metrics):
                self.metrics.update({metric.name: metric for metric in scope.metrics})
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing of one's own."""


async def look_up(ids: list[int]) -> list[str | ItemError]:
    """Answer all of these at once; a missing one is an error of its own."""
    await asyncio.sleep(0.002)
    return [CITIES.get(number) or ItemError(f"no city {number}", code="missing") for number in ids]


async def requests(telemetry: Telemetry, tracer: Any) -> None:
    """Serve twelve requests at once."""
    async with Batcher(look_up, name="cities", max_batch_size=5, telemetry=telemetry) as cities:

        async def request(number: int) -> None:
            with tracer.start_as_current_span(f"GET /cities/{number}"):
                await cities.submit(number)

        await asyncio.gather(*[request(n % 6) for n in range(12)], return_exceptions=True)


def show(spans: dict[bytes, Any], metrics: dict[str, Any]) -> None:
    """Print what came in at the collector."""
    for span in sorted(spans.values(), key=lambda span: span.start_time_unix_nano):
        if span.name.startswith("process"):
            facts = {pair.key.removeprefix("microbatch."): pair.value for pair in span.attributes}
            print(
                f"{span.name}: {facts['batch.size'].int_value} items,",
                f"reason {facts['flush.reason'].string_value},",
                f"{facts['batch.failed_items'].int_value} failed, linked to",
                ", ".join(spans[link.span_id].name.split("/")[-1] for link in span.links),
            )
    print("metrics:", *sorted(name for name in metrics if name.startswith("microbatch.")))


def main() -> None:
    """Set up the SDK as an application does, work, and look at what came out."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    Collector.spans, Collector.metrics = {}, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    otlp = f"http://127.0.0.1:{server.server_port}/v1"
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{otlp}/traces")))
    readers = [
        PeriodicExportingMetricReader(OTLPMetricExporter(f"{otlp}/metrics")),
        PrometheusMetricReader(),
    ]
    meter_provider = MeterProvider(readers)
    scraped, thread = start_http_server(0, "127.0.0.1")

    telemetry = Telemetry(
        tracer_provider=tracer_provider, meter_provider=meter_provider, error_codes=["missing"]
    )
    asyncio.run(requests(telemetry, tracer_provider.get_tracer("example")))

    url = f"http://127.0.0.1:{scraped.server_port}/metrics"
    with urllib.request.urlopen(url) as answer:
        lines = answer.read().decode().splitlines()
    tracer_provider.shutdown()  # sends what has not been sent
    meter_provider.shutdown()
    for stopping in (server, scraped):
        stopping.shutdown()
        stopping.server_close()
    thread.join()
    show(Collector.spans, Collector.metrics)
    print(*sorted(line for line in lines if line.startswith("microbatch_items_total")), sep="\n")


if __name__ == "__main__":
    main()
