"""Every asynchronous test runs on asyncio, uvloop and trio, in virtual time unless it is marked ``real_time``.

The helpers stand in ``support.py``, which any test file may import.
"""

from __future__ import annotations

import functools
import gc
import inspect
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

sys.path.insert(
    0, str(Path(__file__).parent)
)  # for support.py: pytest's importlib mode adds nothing

from hypothesis import HealthCheck, settings
from support import BACKENDS, backend_options

if TYPE_CHECKING:
    from collections.abc import Iterator

# MICROBATCH_EXAMPLES=2000 pytest ... looks longer for counter-examples than the quick run does, and for new ones each
# time. The quick run looks at the same ones: what it finds, it finds before a change lands and not in another's.
settings.register_profile(
    "microbatch",
    max_examples=int(os.environ.get("MICROBATCH_EXAMPLES", "60")),
    derandomize="MICROBATCH_EXAMPLES" not in os.environ,
    deadline=None,  # other programs share the machine; pytest-timeout bounds each test
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("microbatch")

#: Seconds that one test may take by its own clock. In virtual time they pass at once when everything waits, so a
#: test that would hang fails there and then, with the line on which it hangs.
BOUND_VIRTUAL = 100_000.0
BOUND_REAL = 240.0


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in its background with Ctrl-C ignored, and so would every process of the tests be.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "real_time: runs on the real clock, because worker threads or sockets take part"
    )
    config.addinivalue_line(
        "markers",
        "asyncio_logs: provokes records on asyncio's own logger, which fail any other test",
    )


def pytest_collection_finish() -> None:
    """Leave what was imported out of every collection to come: it stays, and looking at it takes most of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    """For tests that make their own event loops: the name to give to ``support.run``."""
    return str(request.param)


@pytest.fixture
def anyio_backend(backend_name: str, request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A fresh event loop for each test: what one test leaves behind must not meet the next."""
    real_time = request.node.get_closest_marker("real_time") is not None
    return backend_options(backend_name, real_time=real_time)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Bound every asynchronous test by its own clock."""
    test = pyfuncitem.obj
    if inspect.iscoroutinefunction(test) and not hasattr(test, "hypothesis"):
        real_time = pyfuncitem.get_closest_marker("real_time") is not None
        seconds = BOUND_REAL if real_time else BOUND_VIRTUAL
        if pyfuncitem.get_closest_marker("soak") is not None:
            seconds *= 30

        @functools.wraps(test)
        async def bounded(**arguments: Any) -> None:
            with anyio.fail_after(seconds):
                await test(**arguments)

        pyfuncitem.obj = bounded


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture(autouse=True)
def asyncio_has_nothing_to_complain_of(request: pytest.FixtureRequest) -> Iterator[None]:
    """asyncio only logs what nobody caught: an exception in a callback, a task that nobody awaited."""
    errors = _Errors()
    logger = logging.getLogger("asyncio")
    logger.addHandler(errors)
    yield
    if request.node.get_closest_marker("asyncio_logs") is not None:
        gc.collect()  # what it leaves is complained of now, and not in another test
    logger.removeHandler(errors)
    if request.node.get_closest_marker("asyncio_logs") is None:
        assert errors.messages == []
