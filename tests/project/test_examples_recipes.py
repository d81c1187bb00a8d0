"""The recipes hold against the real client libraries, and their programs print what they claim."""

from __future__ import annotations

import inspect
import re
import sys
import types

import aiokafka
import pytest
from examples_support import output_of
from pages_support import DOCS, blocks_of
from test_examples_postgres import postgres  # noqa: F401 - a fixture


@pytest.fixture
def services(monkeypatch):
    """What the page on services defines, without its programs running."""
    module = types.ModuleType("recipe")
    monkeypatch.setitem(sys.modules, "recipe", module)
    for block in blocks_of(DOCS / "how-to/recipes-services.md"):
        if block.language == "python":
            source = re.sub(r"^(?:asyncio|anyio)\.run\(.*\)$", "", block.source, flags=re.MULTILINE)
            exec(source, vars(module))
    return module


def test_the_kafka_recipes_producer_is_what_aiokafka_has(services):
    """The stand-in takes what the real producer takes, in its order, and its transaction is a context manager."""
    theirs = list(inspect.signature(aiokafka.AIOKafkaProducer.send).parameters)
    for ours in (services.Producer, services.Log):
        assert theirs[:4] == list(inspect.signature(ours.send).parameters)
    assert not inspect.iscoroutinefunction(aiokafka.AIOKafkaProducer.transaction)
    assert list(inspect.signature(aiokafka.AIOKafkaProducer.transaction).parameters) == ["self"]


@pytest.mark.slow
def test_djangos_orm_in_batches(tmp_path):
    """Each caller gets the key of its own row, and a few statements carry all of them."""
    printed = output_of("insert_with_django.py", folder=tmp_path)
    assert re.findall(r"own row: (\d+)", printed) == ["500", "500"]
    assert "abulk_create: 5 calls, ain_bulk: 10\n" in printed
    assert "nothing was found for -1" in printed


@pytest.mark.slow
def test_each_way_of_asyncpg_writes_every_row(postgres, tmp_path):  # noqa: F811
    """Whichever way, all rows are there; with unnest every caller has its own id."""
    printed = output_of("postgres_bulk.py", postgres, "2000", folder=tmp_path)
    found = re.findall(r"^(.+?) +[\d,]+ rows/s  own id: ([\d,]+)$", printed, re.MULTILINE)
    ids = {title: int(own.replace(",", "")) for title, own in found}
    assert len(ids) == 10
    for title, own in ids.items():
        assert own == (2_000 if title.startswith(("one", "unnest")) else 0), title
