"""Ctrl-C and sys.exit() in on_batch: callers have their outcomes, and then the program ends."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support import BACKENDS, Recorder, leaves, outcome, run, turns

from microbatch import Batcher, BatchRecord, Telemetry


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.asyncio_logs
def test_what_must_end_the_program_does_so_after_the_outcomes(backend_name: str, kind: Any) -> None:
    """As from a handler; the batch is whole all the same."""
    ended: list[Any] = []

    def on_batch(record: BatchRecord) -> None:
        raise kind

    async def main() -> None:
        async with Batcher(Recorder(), telemetry=Telemetry(on_batch=on_batch)) as batcher:
            pending = batcher.submit_nowait(1)
            await turns(4)
            ended.append(pending.done())
            ended.append(await outcome(pending))
            await anyio.sleep(1)
            ended.append("survived")

    with pytest.raises(BaseException) as caught:
        run(backend_name, main)
    assert kind in {type(leaf) for leaf in leaves(caught.value)}
    assert ended[1:2] in ([], [10])
    # trio lets nothing but Ctrl-C out of a task that is nobody's child: SystemExit waits for the close.
    assert "survived" not in ended or (backend_name, kind) == ("trio", SystemExit)


@pytest.mark.parametrize("backend_name", [b for b in BACKENDS if b != "trio"], indirect=True)
@pytest.mark.asyncio_logs
def test_two_at_once_end_the_program_once(backend_name: str) -> None:
    """Whoever cleans up after the first is not interrupted by the second. (To trio it is Ctrl-C twice.)"""
    ended: list[Any] = []

    def on_batch(record: BatchRecord) -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        batcher = Batcher(
            Recorder(),
            max_batch_size=1,
            max_concurrency=2,
            telemetry=Telemetry(on_batch=on_batch),
        )
        try:
            batcher.submit_nowait(1)
            batcher.submit_nowait(2)
            await anyio.sleep(1)
            ended.append("survived")
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
                ended.append("cleaned up")

    with pytest.raises(BaseException) as caught:
        run(backend_name, main)
    assert KeyboardInterrupt in {type(leaf) for leaf in leaves(caught.value)}
    assert ended == ["cleaned up"]
