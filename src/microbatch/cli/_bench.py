"""``bench``: what a handler costs, whether batching pays, and by which settings."""

from __future__ import annotations

import statistics
import time
from contextlib import aclosing
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from microbatch import Batcher
from microbatch._core.bulk import bulk

from ._arguments import seconds_from, whole_from
from ._command import DONE, FOUND, WRONG_USE, Command, CommandEnd
from ._costs import Costs, best_size, fitted, sizes_up_to
from ._import_source import FORMATS, RowSource
from ._looping import run_in_loop
from ._naming import named_handler, named_object
from ._wording import count_text, rate_text, safe_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Mapping

    from ._console import Console

    Call = Callable[[list[Any]], Awaitable[list[Any]]]

#: Calls of each size at most, while there is time.
_CALLS = 7

#: Items by which the batcher's own cost is measured: some milliseconds.
_OWN_ITEMS = 2_000

#: Calls at the same time that are tried.
_TOGETHER = (1, 2, 4, 8)

_BAR = 30

_clock = time.perf_counter


class _Measured(NamedTuple):
    """What was measured.

    Attributes:
        calls: Seconds of a call, by its items: the median.
        costs: What fits them.
        together: Items per second, by how many calls were made at the same time.
        failed: How many items failed.
    """

    calls: Mapping[int, float]
    costs: Costs
    together: Mapping[int, float]
    failed: int


class _Bench:
    """Calls a handler and looks at the clock.

    Args:
        call: The handler.
        items: What it gets, again and again.
        seconds: How long to go on, about.
    """

    def __init__(self, call: Call, items: list[Any], seconds: float) -> None:
        self._call = call
        self._items = cycle(items)
        self._seconds = seconds
        self.failed = 0

    async def timed(self, size: int) -> float:
        """Return the seconds of a call with so many items."""
        items = list(islice(self._items, size))
        began = _clock()
        results = await self._call(items)
        took = _clock() - began
        self.failed += sum(isinstance(one, Exception) for one in results)
        return took

    async def calls(self, sizes: list[int]) -> dict[int, float]:
        """Return the median seconds of a call, by size: all sizes in turn, as long as there is time."""
        await self.timed(1)  # what is done once, a connection say, is no call's cost
        found: dict[int, list[float]] = {size: [] for size in sizes}
        share = self._seconds / 2 / len(sizes)
        for _ in range(_CALLS):
            for size, seen in found.items():
                if not seen or sum(seen) + max(seen) <= share:
                    seen.append(await self.timed(size))
        return {size: statistics.median(seen) for size, seen in found.items()}

    async def together(self, size: int) -> dict[int, float]:
        """Return items per second, by how many calls of a size are under way at the same time."""
        rates = {}
        for count in _TOGETHER:
            began = _clock()
            async with anyio.create_task_group() as group:
                for _ in range(count):
                    group.start_soon(self.timed, size)
            took = _clock() - began
            rates[count] = count * size / took if took else float("inf")
        return rates


async def _own_cost() -> float:
    """Return what the batcher itself takes for an item, in seconds."""

    async def nothing(items: list[int]) -> None:
        pass

    async with Batcher(nothing, telemetry=False) as batcher:
        began = _clock()
        waiting = [batcher.submit_nowait(item) for item in range(_OWN_ITEMS)]
        try:
            for pending in waiting:
                await pending
            return (_clock() - began) / _OWN_ITEMS
        finally:  # interrupted, each of them would complain that nobody awaited it
            for pending in waiting:
                pending.cancel()


async def _measure(args: argparse.Namespace, call: Call, source: RowSource | None) -> _Measured:
    items: list[Any] = (
        list(range(args.items)) if source is None else await _bench_rows(source, args.items)
    )
    bench = _Bench(call, items, args.seconds)
    overhead = await _own_cost()
    calls = await bench.calls(sizes_up_to(args.items))
    costs = fitted(calls, overhead)
    together = await bench.together(best_size(costs, args.items))
    return _Measured(calls, costs, together, bench.failed)


async def _bench_rows(source: RowSource, most: int) -> list[Any]:
    found: list[Any] = []
    async with aclosing(source.rows()) as rows:
        async for outcome in rows:
            if outcome.value is not None:
                found.append(outcome.value.value)
            if len(found) == most:
                break
    if not found:
        raise CommandEnd("the source has no row that can be read", WRONG_USE)
    return found


def _run_bench(args: argparse.Namespace, console: Console) -> int:
    try:
        call = bulk(named_handler(args.handler))
    except TypeError as error:
        raise CommandEnd(f"--handler: {error}", WRONG_USE) from error
    row_type = None if args.type is None else named_object("--type", args.type)
    source = None if args.source is None else RowSource(args.source, args.format, row_type)
    try:
        measured = run_in_loop(partial(_measure, args, call, source))
    except CommandEnd:
        raise
    except Exception as raised:
        cause: BaseException = raised
        while isinstance(cause, BaseExceptionGroup):  # of calls at the same time
            cause = cause.exceptions[0]
        hint = "" if source else "; it got whole numbers: give it rows with --source"
        message = f"the handler failed: {type(cause).__name__}: {cause}{hint}"
        raise CommandEnd(message, FOUND) from raised
    advice = _advice(measured, args.items)
    if console.json:
        console.object(_bench_fields(args.handler, measured, advice))
    else:
        _show_bench(console, args.handler, measured, advice)
    if measured.failed:
        console.note(
            f"{count_text(measured.failed, 'item')} failed: the figures are those of failures too"
        )
        return FOUND
    return DONE


def _advice(measured: _Measured, most: int) -> dict[str, Any]:
    """Return the settings that suit: the fewest calls together that come near to the best."""
    if not measured.costs.pays():
        return {}
    best = max(measured.together.values())
    concurrency = next(n for n, rate in measured.together.items() if rate >= 0.9 * best)
    return {
        "max_batch_size": best_size(measured.costs, most),
        "max_wait": 0.0,
        "max_concurrency": concurrency,
    }


def _bench_fields(handler: str, measured: _Measured, advice: dict[str, Any]) -> dict[str, Any]:
    costs = measured.costs
    return {
        "handler": handler,
        "fixed": costs.fixed,
        "per_item": costs.item,
        "overhead": costs.overhead,
        "break_even": costs.break_even(100),
        "knee": costs.knee,
        "pays": costs.pays(),
        "calls": [
            {"size": size, "seconds": seconds, "gain": costs.gain(size)}
            for size, seconds in measured.calls.items()
        ],
        "together": [{"calls": n, "rate": rate} for n, rate in measured.together.items()],
        "recommended": advice,
    }


def _show_bench(
    console: Console, handler: str, measured: _Measured, advice: dict[str, Any]
) -> None:
    costs = measured.costs
    rates = {size: size / seconds if seconds else 0.0 for size, seconds in measured.calls.items()}
    best = max(rates.values()) or 1.0
    cells = [
        [
            f"{size:,}", _short_text(seconds), _short_text(seconds / size), rate_text(rates[size]),
            "#" * round(_BAR * rates[size] / best),
        ]
        for size, seconds in measured.calls.items()
    ]  # fmt: skip
    console.table(("BATCH", "CALL", "AN ITEM", "ITEMS", ""), cells, "rrrrl")
    console.line()
    console.line(f"handler {safe_text(handler)}")
    console.line(f"  a call costs    {_short_text(costs.fixed)}, whatever is in it")
    console.line(f"  an item costs   {_short_text(costs.item)}")
    console.line(f"  the batcher     {_short_text(costs.overhead)} an item")
    console.line(
        f"  break-even      {_short_text(costs.break_even(100))} a call, in batches of 100"
    )
    if not advice:
        console.line("batching does not pay: a call costs no more than the batcher")
        return
    console.line(f"  half the gain   at {count_text(max(1, round(costs.knee)), 'item')} a batch")
    size = advice["max_batch_size"]
    console.line(
        f"  in batches of {size:,} an item is {costs.gain(size):,.1f} times cheaper than alone"
    )
    settings = ", ".join(f"{name}={value}" for name, value in advice.items())
    console.line(f"recommended: {settings}")


def _short_text(seconds: float) -> str:
    for unit, size in (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3)):
        text = f"{seconds / size:.3g}"
        if float(text) < 1_000:  # as it is shown: three figures of 999.9 are 1e+03
            return f"{text} {unit}"
    return f"{seconds:.3g} s"


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--handler", metavar="MODULE:FUNCTION", required=True, help="the bulk handler")
    add(
        "--items",
        type=whole_from(2, 1_000_000),
        default=1000,
        metavar="N",
        help="the greatest batch that is tried (1000)",
    )
    add("--source", metavar="SOURCE", help="a file whose rows it gets; whole numbers by default")
    add("--type", metavar="MODULE:TYPE", help="the type of a row; plain dicts by default")
    add("--format", choices=FORMATS, help="the file's format; by default from its name")
    add(
        "--seconds",
        type=seconds_from(0),
        default=5.0,
        metavar="SECONDS",
        help="how long to measure, about; each size is called once at least (5.0)",
    )


COMMANDS = (
    Command(
        "bench",
        "Measure what a handler costs by a call and by an item, and recommend settings.",
        "microbatch bench --handler shop:count --items 100 --seconds 0.2",
        _bench_arguments,
        _run_bench,
        "The handler is called for real: what it writes is written. Its calls in growing batches give a line, "
        "by least squares: where it begins is the fixed cost of a call, its slope the cost of an item. "
        "Batching pays where the fixed cost is above the break-even, which is what the batcher itself costs.",
    ),
)
