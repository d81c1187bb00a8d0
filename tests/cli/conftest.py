"""The command, called in this process: what it prints, and how it ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from support import backend_options

sys.path.insert(0, str(Path(__file__).parent))  # for cli_support.py

from cli_support import Called


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The durable mode runs on asyncio alone."""
    return backend_options(str(request.param), real_time=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cli" in item.path.parts:
            item.add_marker(pytest.mark.real_time)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a queue's file will be."""
    return tmp_path / "shop.db"


@pytest.fixture
def microbatch(capsys: pytest.CaptureFixture[str]) -> Any:
    """Call the command with arguments."""
    return Called(capsys)
