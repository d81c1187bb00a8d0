"""The command, called in this process: what it prints, and how it ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import backend_options

sys.path.insert(0, str(Path(__file__).parent))  # for cli_support.py

from cli_support import Called

if TYPE_CHECKING:
    from collections.abc import Iterator


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


SHOP = """
import msgspec
from microbatch import ItemError, Skipped

class Order(msgspec.Struct):
    number: int
    name: str = "tea"

class Down(Exception):
    pass

calls = []
downs = 0

def save(orders):
    calls.append(list(orders))
    return [one(order) for order in orders]

def one(order):
    number = int(order["number"]) if isinstance(order, dict) else order.number
    if number == 13:
        return ItemError("thirteen is refused", code="unlucky", retryable=False)
    return Skipped("not today") if number == 14 else number

async def flaky(orders):
    global downs
    calls.append(list(orders))
    downs += 1
    if downs < 3:
        raise Down("not now")

def wrong(orders):
    calls.append(list(orders))
    raise KeyError("no such column")

def stop(orders):
    calls.append(list(orders))
    if len(calls) == 2:
        raise KeyboardInterrupt

def pairs(orders):
    for index, order in enumerate(orders):
        yield index, order

number = 5
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A working folder with a module of handlers; gives the module once it was imported."""
    (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield lambda: sys.modules["shop"]
    sys.modules.pop("shop", None)
