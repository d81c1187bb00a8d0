"""The durable mode runs on asyncio, in real time: SQLite and its thread know no other."""

from __future__ import annotations

import gc
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import backend_options

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parent))  # for durable_support.py and crash.py

from durable_support import NewThreads


@pytest.fixture(params=["asyncio"])
def backend_name(request: pytest.FixtureRequest) -> str:
    """asyncio alone; a test that parametrises ``backend_name`` indirectly with LOOPS runs on uvloop too."""
    return str(request.param)


@pytest.fixture
def anyio_backend(backend_name: str) -> tuple[str, dict[str, Any]]:
    return backend_options(backend_name, real_time=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "durable" in item.path.parts:
            item.add_marker(pytest.mark.real_time)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a queue's file will be."""
    return tmp_path / "queue.db"


@pytest.fixture
def ended_loops() -> Iterator[None]:
    """For tests that end event loops without closing: what complains about that does so before they end."""
    threads = NewThreads()
    yield
    for thread in threads.running():
        thread.join(20)
    gc.collect()
    assert not threads.running()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs come in in many transactions for few items."""
    monkeypatch.setattr("microbatch.durable._flow.job_intake.CHUNK_ITEMS", 10)
    monkeypatch.setattr("microbatch.durable._flow.job_intake.CHUNK_REFUSED", 3)


@pytest.fixture(autouse=True)
def quick_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers in this process look about, keep up and try again more often, so that tests wait less."""
    monkeypatch.setattr("microbatch.durable._life.neighbours.ALIVE_INTERVAL", 0.05)
    monkeypatch.setattr("microbatch.durable._life.upkeep.UPKEEP_INTERVAL", 0.1)
    monkeypatch.setattr("microbatch.durable._file.writer.TROUBLE_PAUSE", 0.05)
    monkeypatch.setattr("microbatch.durable._flow.settling.TROUBLE_PAUSE", 0.05)


@pytest.fixture(autouse=True)
def nothing_went_wrong_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A background task only logs its errors: any record of that level fails the test."""
    caplog.set_level(logging.DEBUG, "microbatch.durable")
    yield
    errors = [
        r.getMessage()
        for r in caplog.get_records("call")
        if r.name == "microbatch.durable" and r.levelno >= logging.ERROR
    ]
    assert errors == []
