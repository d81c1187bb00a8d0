"""The dashboard, the alert rules and the reference against the names that the library really emits."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from pages_support import DOCS
from prometheus_client import REGISTRY, generate_latest
from support import Recorder
from telemetry_support import Sdk

from microbatch import Backoff, Batcher, BatcherFull, RateLimited, Retry, Telemetry, __version__
from microbatch._telemetry import names
from microbatch.durable import DurableBatcher, DurableQueue

if TYPE_CHECKING:
    from pathlib import Path

DASHBOARD = DOCS / "telemetry/dashboard.json"
ALERTS = DOCS / "telemetry/alerts.yml"


def busy_at_first() -> Any:
    """Return a handler that is refused once, and then fails item 1."""
    refusals, recorder = [RateLimited(retry_after=0)], Recorder(fails={1})

    async def handler(items: list[int]) -> Any:
        if refusals:
            raise refusals.pop()
        return await recorder(items)

    return handler


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every sample name that Prometheus scrapes, with the labels of its series."""
    reader = PrometheusMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    settings = Telemetry(meter_provider=provider, item_metrics=True)
    retry = Retry(on=ValueError, attempts=2, backoff=Backoff(initial=0.0))
    scraped = ""

    async def main() -> None:
        nonlocal scraped
        async with (
            Batcher(
                busy_at_first(),
                max_pending=3,
                weigh=float,
                max_pending_weight=1000,
                retry=retry,
                telemetry=settings,
            ) as batcher,
            DurableQueue(path, item_type=int, telemetry=settings) as queue,
        ):
            await queue.enqueue(1)
            await (await queue.enqueue_job(["x"], invalid="fail")).wait()
            await batcher.submit_many_report([1, 2])
            while not all(
                name in scraped for name in ("microbatch_job_open", "microbatch_job_duration")
            ):  # the one is counted by a task of the queue's own, the other told by its writer
                await anyio.sleep(0.01)
                scraped = generate_latest(REGISTRY).decode()

    path = tmp_path_factory.mktemp("emitted") / "queue.db"
    anyio.run(main)
    provider.shutdown()
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(microbatch_\w+)\{(.*)\} ", scraped, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def panels() -> list[dict[str, Any]]:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]


def expressions() -> list[str]:
    """Every PromQL expression of the dashboard and of the rules."""
    rules = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    return shown + alerts


def test_every_series_in_the_dashboard_and_the_rules_is_emitted(
    emitted: dict[str, set[str]],
) -> None:
    """A panel over a name that does not exist is empty for ever, and an alert never fires."""
    used = {
        name
        for expression in expressions()
        for name in re.findall(r"\b(microbatch_\w+?)(?=[{\[)])", expression)
    }
    used -= set().union(*emitted.values())  # labels have the same prefix
    assert used - set(emitted) == set()
    assert len(used) >= 10


def test_every_label_in_the_dashboard_and_the_rules_is_emitted(
    emitted: dict[str, set[str]],
) -> None:
    """The same for what they are grouped by, metric by metric."""
    known = set().union(*emitted.values())
    for expression in expressions():
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        labels = {label.strip() for group in grouped for label in group.split(",")}
        labels |= set(re.findall(r"[{,](\w+)(?:=~|!=|=)", expression))
        assert labels <= known, expression
        of_these = [
            emitted[name]
            for name in re.findall(r"\b(microbatch_\w+?)(?=[{\[)])", expression)
            if name in emitted
        ]
        assert labels - {"le"} <= set().union(*of_these), expression


def test_every_metric_is_shown_somewhere(emitted: dict[str, set[str]]) -> None:
    """But the opt-in one."""
    text = " ".join(expressions())
    for name in emitted:
        base = re.sub(r"_(bucket|count|sum|created)$", "", name)
        assert base in text or base == "microbatch_item_duration_seconds", name


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """Ids once each, no overlap, every panel with a unit and a description."""
    data = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert {variable["name"] for variable in data["templating"]["list"]} == {
        "datasource",
        "batcher",
    }
    assert len({panel["id"] for panel in panels()}) == len(panels()) >= 8
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()}
    assert len(places) == len(panels())
    for panel in panels():
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)


def test_every_rule_says_what_to_look_at() -> None:
    """An alert at night names the batcher."""
    rules = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 5
    for rule in rules:
        assert "{{ $labels.microbatch_batcher_name }}" in rule["annotations"]["summary"]
        assert rule["for"]
        assert rule["labels"]["severity"] in {"page", "ticket"}


def table(title: str) -> list[list[str]]:
    page = (DOCS / "reference/telemetry.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_reference_has_every_metric_with_its_instrument_and_unit() -> None:
    """Names are a contract with dashboards that nobody here can see."""
    shown = {row[0].strip("`"): (row[1], row[2].strip("`")) for row in table("Metrics")}
    code = {
        **{name: ("histogram", row[0]) for name, row in names.HISTOGRAMS.items()},
        **{name: ("counter", row[0]) for name, row in names.COUNTERS.items()},
        **{name: ("gauge", row[0]) for name, row in names.GAUGES.items()},
        **{
            name: ("counter" if row[0] == "counter" else "gauge", row[1])
            for name, row in names.QUEUE_GAUGES.items()
        },
    }
    assert shown == code


@pytest.mark.anyio
async def test_the_reference_has_every_attribute_of_a_batchs_span() -> None:
    """The same for traces: one batch with all of them."""
    sdk = Sdk()

    async def handler(items: list[int]) -> list[int]:
        raise BatcherFull("x", "max_pending", 1)

    async def submit(item: int) -> None:
        with sdk.tracer.start_as_current_span("request"), pytest.raises(BatcherFull):
            await batcher.submit(item)

    async with (
        Batcher(handler, max_batch_size=129, telemetry=sdk.telemetry()) as batcher,
        anyio.create_task_group() as tasks,
    ):
        for item in range(129):
            tasks.start_soon(submit, item)
    (span,) = [span for span in sdk.all_spans() if span.name.startswith("process")]
    shown = [row[0].strip("`") for row in table("Spans")]
    assert set(shown[4:]) == set(span.attributes)
    assert shown[:4] == ["process {name}", "submit {name}", "send {queue}", "process {queue}"]


CONVENTION = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


def documented_bounds() -> dict[str, tuple[float, ...]]:
    """The buckets of each histogram, as the page's text tells them."""
    page = " ".join((DOCS / "reference/telemetry.md").read_text(encoding="utf-8").split())
    said = re.search(
        r"sizes ([\d .]+); seconds ([\d .]+); of jobs ([\d .]+); "
        r"the conventions' own for `([\w.]+)`\.",
        page,
    )
    assert said is not None
    of_jobs = {"microbatch.job.duration": tuple(map(float, said[3].split()))}
    sizes, seconds = (tuple(map(float, said[number].split())) for number in (1, 2))
    by_unit = {"`{item}`": sizes, "`s`": seconds}
    histograms = [row for row in table("Metrics") if row[1] == "histogram"]
    return (
        {row[0].strip("`"): by_unit[row[2]] for row in histograms} | of_jobs | {said[4]: CONVENTION}
    )


def test_what_an_sdk_gets_has_the_pages_names_units_kinds_and_bounds(tmp_path: Path) -> None:
    """Dashboards depend on each of them."""
    sdk = Sdk()
    settings = sdk.telemetry(item_metrics=True, semconv_metrics=True)
    retry = Retry(on=ValueError, attempts=2, backoff=Backoff(initial=0.0))

    async def main() -> None:
        async with (
            Batcher(
                busy_at_first(),
                weigh=float,
                max_pending_weight=1000,
                retry=retry,
                telemetry=settings,
            ) as batcher,
            DurableBatcher(
                tmp_path / "queue.db", Recorder(), item_type=int, telemetry=settings
            ) as durable,
        ):
            await batcher.submit_many_report([1, 2])
            await durable.submit(3)
            await (await durable.enqueue_job([4])).wait()
            while not {"microbatch.job.open", "microbatch.job.duration"} <= set(
                metrics
            ):  # counted by a task of the queue's own, and told by its writer
                await anyio.sleep(0.01)
                metrics.update(sdk.metrics())

    metrics: dict[str, Any] = {}
    anyio.run(main)
    shown = {row[0].strip("`"): (row[1], row[2].strip("`")) for row in table("Metrics")}
    assert {name: (kind(metric), metric.unit) for name, metric in metrics.items()} == shown
    bounds = documented_bounds()
    assert {10, 50, 100, 200, 500, 1000} <= set(bounds["microbatch.batch.size"])
    for name, expected in bounds.items():
        for point in metrics[name].data.data_points:
            assert tuple(point.explicit_bounds) == expected, name
    assert sdk.scope == ("microbatch", __version__, "https://opentelemetry.io/schemas/1.44.0")


def kind(metric: Any) -> str:
    """The page's word for an instrument."""
    if type(metric.data).__name__ == "Histogram":
        return "histogram"
    return "counter" if getattr(metric.data, "is_monotonic", False) else "gauge"
