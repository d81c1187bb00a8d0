"""`submit` beside the 20-line batcher, by pytest-benchmark.

    pytest benchmarks/test_overhead.py

The floor runs just before every round of `submit`, outside of what pytest-benchmark times, so
that both see the same machine; `extra_info` has the floor's time and the median of the paired
ratios. Another batcher can stand in the place of `submit`: give its way in `contenders.py`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import time

import pytest

from benchmarks import contenders

CALLERS = int(os.environ.get("BENCH_CALLERS", "5000"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "15"))


@pytest.mark.timeout(300)
@pytest.mark.benchmark(timer=time.process_time, disable_gc=False, warmup=False)
@pytest.mark.parametrize("name", ["submit", "submit_nowait", "dloader", "aiodataloader"])
@pytest.mark.parametrize("size", [100, 10, 1])
def test_beside_the_floor(benchmark, name, size):
    """What a batcher costs beyond what anybody would write by hand."""
    contender, floor = contenders.ALL[name], contenders.ALL[contenders.FLOOR]
    if not contenders.installed(contender):
        pytest.skip(f"{name} is not installed")
    benchmark.group = f"batch {size}, {CALLERS:,} callers"
    floors, mine = [], []

    async def opened():
        async with contender.open(size) as run, floor.open(size) as floor_run:
            await run(200)
            await floor_run(200)
            yield run, floor_run

    with asyncio.Runner() as runner:
        generator = opened()
        run, floor_run = runner.run(anext(generator))

        def timed(function, into):
            gc.collect()
            began = time.process_time()
            runner.run(function(CALLERS))
            into.append(time.process_time() - began)

        benchmark.pedantic(
            timed, args=(run, mine), setup=lambda: timed(floor_run, floors), rounds=ROUNDS
        )
        runner.run(generator.aclose())
    pairs = [a / b for a, b in zip(mine, floors, strict=True)]
    benchmark.extra_info |= {
        "floor_seconds": statistics.median(floors),
        "ratio_to_floor": round(statistics.median(pairs), 3),
    }
