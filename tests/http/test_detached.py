"""Work that outlives its request: what ends the program, and what an event loop takes with it."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

import anyio
import pytest
from support import leaves, run, turns

from microbatch.http._detached import Detached


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_must_end_the_program_does_so_and_nobody_complains(
    backend_name: str, kind: type[BaseException], grouped: bool
) -> None:
    """An application's own function may raise it within a request; a task group may wrap it."""
    survived: list[bool] = []

    async def work() -> None:
        raise BaseExceptionGroup("a group", [kind()]) if grouped else kind

    async def main() -> None:
        detached = Detached()
        try:
            await detached.run(work, timeout=5)
        except Exception:
            await anyio.sleep(1)
            survived.append(True)

    if (backend_name, kind) == ("trio", SystemExit):
        # trio lets nothing but Ctrl-C out of a task that is nobody's child: the request alone is told.
        run(backend_name, main)
        assert survived
    else:
        with pytest.raises(BaseException) as caught:
            run(backend_name, main)
        assert kind in {type(leaf) for leaf in leaves(caught.value)}
        assert not survived
        del caught
    gc.collect()  # whatever asyncio has to say of a task it says now, and that fails the test


@pytest.mark.asyncio_logs
def test_what_an_event_loop_took_with_it_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An application may be closed in another loop than the one that was stopped in the middle of a request."""
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    detached = Detached()

    async def asks() -> None:
        await detached.run(anyio.sleep_forever, timeout=5)

    async def is_closed() -> None:
        await detached.join()
        assert len(detached) == 0

    loop = asyncio.new_event_loop()
    asking = loop.create_task(asks())
    closing = loop.create_task(detached.join())
    loop.run_until_complete(turns())
    loop.close()
    assert len(detached) == 1
    run("asyncio", is_closed)
    del asking, closing
    gc.collect()
    assert not complaints
