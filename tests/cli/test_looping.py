"""The event loop of a command: nothing that comes from outside is missed."""

from __future__ import annotations

import signal
import threading

import anyio
import pytest

from microbatch.cli._looping import run_in_loop


def test_a_signal_that_interrupts_no_wait_ends_it_too() -> None:
    """In another thread it does to the wait of the main one what one a moment too early does: nothing."""
    ended = threading.Event()
    in_time: list[bool] = []

    def interrupt() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        in_time.append(ended.wait(30))

    async def waits() -> None:
        timer.start()
        try:
            await anyio.sleep(40)
        finally:
            ended.set()

    timer = threading.Timer(0.3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_in_loop(waits)
    timer.join()
    assert in_time == [True]


def test_what_a_function_returns_or_raises_comes_out() -> None:
    async def returns() -> int:
        await anyio.sleep(0.25)
        return 1

    async def refuses() -> int:
        raise ValueError("odd")

    assert run_in_loop(returns) == 1
    with pytest.raises(ValueError, match="odd"):
        run_in_loop(refuses)
