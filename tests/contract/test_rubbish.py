"""Errors and policies that break when looked at: nothing that only counts, tells or learns fails a batch."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor
from support import Recorder, counted, outcome, outcomes, turns
from telemetry_support import Sdk

from microbatch import (
    AdaptiveSize,
    Backoff,
    Batcher,
    ItemError,
    Retry,
    Skipped,
    Telemetry,
    current_batch,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


class Bare(ItemError):
    """Never calls ItemError's constructor."""

    def __init__(self, why: str) -> None:
        self.why = why


class Raising(ItemError):
    """Each of its fields raises."""

    code = retryable = retry_after = property(lambda self: 1 / 0)  # type: ignore[assignment]

    def __init__(self) -> None:
        Exception.__init__(self, "raising")


class UnhashableClass(type):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(cls, other: object) -> bool:
        raise LookupError


class OfNoHash(ItemError, metaclass=UnhashableClass):
    pass


class Cloaked(Exception):
    """isinstance() asks for this where the type itself does not answer."""

    __class__ = property(lambda self: 1 / 0)  # type: ignore[assignment]


class Mute(ItemError):
    def __str__(self) -> str:
        raise LookupError

    __repr__ = __str__
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise LookupError


class Stubborn(Exception):
    def with_traceback(self, trace: Any) -> Any:
        raise LookupError


class Word(str):
    """A code that cannot be hashed."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]


RUBBISH = [
    pytest.param(lambda: ItemError("x", code=["a", "b"]), id="unhashable code"),  # type: ignore[arg-type]
    pytest.param(lambda: ItemError("x", code=Word("odd")), id="unhashable str"),
    pytest.param(lambda: ItemError(7, retryable="no"), id="wrong types"),  # type: ignore[arg-type]
    pytest.param(lambda: ItemError("x", retry_after=10**400), id="huge delay"),
    pytest.param(lambda: Bare("x"), id="bare"),
    pytest.param(Raising, id="raising fields"),
    pytest.param(lambda: OfNoHash("x"), id="class of no hash"),
    pytest.param(lambda: Cloaked("x"), id="cloaked"),
    pytest.param(lambda: Mute("x"), id="mute"),
    pytest.param(lambda: Stubborn("x"), id="stubborn"),
    pytest.param(lambda: Skipped(code={}), id="unhashable skip"),  # type: ignore[arg-type]
]
SETTINGS = [
    pytest.param({}, id="plain"),
    pytest.param({"retry": Retry(on=LookupError)}, id="retry"),
    pytest.param({"retry": Retry(on=lambda error: True, attempts=2)}, id="retried"),
    pytest.param({"max_batch_size": AdaptiveSize(3, 9)}, id="adaptive"),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("make", RUBBISH)
async def test_a_rubbish_error_is_its_own_callers_and_nobody_elses(
    make: Any, settings: dict[str, Any]
) -> None:
    """Its caller hung, and its mates got "the batch's task is gone" though they had results."""

    async def handler(items: list[int]) -> list[Any]:
        return [make() if item == 1 else item for item in items]

    sdk = Sdk()
    async with Batcher(
        handler, **settings, telemetry=sdk.telemetry(trace_items=True, item_metrics=True)
    ) as batcher:
        good, bad, mate = await outcomes(*map(batcher.submit, range(3)))
        assert (good, mate) == (0, 2)
        assert type(bad) is type(make())
        report = await batcher.submit_many_report(range(3))
        assert [outcome.ok for outcome in report] == [True, False, True]
        assert sum(report.errors.values()) == 1
        assert counted(batcher).pending == 0
    assert len(sdk.spans(f"submit {batcher.name}")) == 4


@pytest.mark.parametrize("make", RUBBISH)
async def test_rubbish_raised_for_the_whole_batch_reaches_every_caller(make: Any) -> None:
    """The same for what a handler raises: each gets it, and the next batch goes its way."""

    async def handler(items: list[int]) -> list[Any]:
        if 0 in items:
            raise make()
        return items

    async with Batcher(handler) as batcher:
        errors = await outcomes(*map(batcher.submit, range(3)))
        assert all(type(error) is type(make()) for error in errors)
        assert await batcher.submit(3) == 3


@pytest.mark.parametrize("way", ["returned", "yielded", "resolved"])
async def test_a_result_that_hides_its_class_is_a_result(way: str) -> None:
    """A web framework's proxy raises outside of its request when asked what it is."""

    class Proxy:
        __class__ = property(lambda self: 1 / 0)  # type: ignore[assignment]

    async def bulk(items: list[int]) -> list[Any]:
        batch = current_batch()
        assert batch is not None
        if way == "resolved":
            batch.resolve(0, Proxy())
        return [Proxy() for _ in items]

    async def generator(items: list[int]) -> Any:
        for index, _ in enumerate(items):
            yield index, Proxy()

    async with Batcher[int, Any](generator if way == "yielded" else bulk) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
        assert [type(result) for result in results] == [Proxy] * 3
        report = await batcher.submit_many_report(range(3))
        assert report.succeeded == 3


class OwnRetry(Retry):
    def delay(self, error: Exception, attempt: int, chance: Any = None) -> Any:
        return self.on(error)  # type: ignore[operator]


@pytest.mark.parametrize("delay", ["soon", float("nan"), float("inf"), -1.0, True])
async def test_a_delay_that_is_none_fails_the_item_with_its_own_error(
    delay: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A subclass of Retry may say anything; the item's own error is the one that matters."""
    retry = OwnRetry(on=lambda error: delay, backoff=Backoff(initial=0))
    async with Batcher(Recorder(fails=(1,)), retry=retry) as batcher:
        good, bad = await outcomes(batcher.submit(0), batcher.submit(1))
    assert good == 0
    assert type(bad) is ValueError
    assert "the item is not retried" in caplog.text


class Unwilling(AdaptiveSize):
    """Raises at what it is told, or asked."""

    told = False

    @property
    def size(self) -> int:
        if self.told and self.minimum == 1:
            raise LookupError
        return 1

    def record(self, size: int, seconds: float, *, failed: bool) -> None:
        type(self).told = True
        if self.minimum == 2:
            raise LookupError


@pytest.mark.parametrize("minimum", [1, 2])
async def test_an_adaptive_size_that_raises_is_told_of_and_done_without(
    minimum: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Batches go on, with the maximum as their size."""
    Unwilling.told = False
    handler = Recorder()
    async with Batcher(handler, max_batch_size=Unwilling(minimum, 4)) as batcher:
        assert await outcomes(*map(batcher.submit, range(9))) == [i * 10 for i in range(9)]
        handler.batches.clear()
        assert await outcomes(*map(batcher.submit, range(4))) == [0, 10, 20, 30]
        assert counted(batcher).pending == 0
    assert handler.sizes == [4]
    assert caplog.text.count("its AdaptiveSize failed; from now on max_batch_size is 4") == 1


class Refusing(logging.Handler):
    """A program's handler that does not bear what it gets."""

    def handle(self, record: logging.LogRecord) -> bool:
        raise OSError("the disk of the log is full")


async def test_a_log_that_raises_fails_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines are written where items get their outcomes; the error is shown as logging shows its own."""
    refusing = Refusing()
    logging.getLogger("microbatch").addHandler(refusing)
    try:
        async with Batcher(Recorder(fails=(1,)), retry=OwnRetry(on=lambda error: "x")) as batcher:  # type: ignore[arg-type,return-value]
            good, bad = await outcomes(batcher.submit(0), batcher.submit(1))
            assert await batcher.submit(2) == 20
            assert counted(batcher).pending == 0
    finally:
        logging.getLogger("microbatch").removeHandler(refusing)
    assert good == 0
    assert type(bad) is ValueError
    assert "the disk of the log is full" in capsys.readouterr().err


class BrokenProvider:
    """Raises when asked for a tracer, as one that is half set up does."""

    def get_tracer(self, *args: Any, **options: Any) -> Any:
        raise LookupError("half set up")


async def test_a_provider_that_raises_fails_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """It is asked within the first submit, and again within batches."""
    telemetry = Telemetry(tracer_provider=BrokenProvider())  # type: ignore[arg-type]
    async with Batcher(Recorder(), telemetry=telemetry) as batcher:
        assert await batcher.submit(1) == 10
    assert "telemetry failed and is off from now on" in caplog.text


class BrokenProcessor(SpanProcessor):
    """Raises when a span ends."""

    def on_end(self, span: Any) -> None:
        raise ZeroDivisionError


async def test_a_span_processor_that_raises_fails_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """With trace_items it runs at the moment in which an item gets its outcome."""
    sdk = Sdk()
    sdk.tracer_provider.add_span_processor(BrokenProcessor())
    async with Batcher(Recorder(fails=(1,)), telemetry=sdk.telemetry(trace_items=True)) as batcher:
        good, bad, mate = await outcomes(*map(batcher.submit, range(3)))
        assert (good, type(bad), mate) == (0, ValueError, 20)
        pending = batcher.submit_nowait(3)
        pending.cancel()
        await turns()
        assert await outcome(batcher.submit(4)) == 40
    assert "telemetry failed and is off from now on" in caplog.text
