"""The programs of docs/how-to/engines-recipes.md: each runs by itself, over servers that the tests start."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from pages_support import HEADING, WITH_SERVERS, Block, blocks_of
from support import ENVIRONMENT

pytestmark = pytest.mark.engines

#: What each section's program needs, by the name of its variable.
NEEDS = {
    "A loop over NATS JetStream": ("NATS_URL", "nats_url"),
    "A loop over Redis Streams": ("REDIS_URL", "redis_url"),
    "A loop over PostgreSQL": ("DATABASE_URL", "postgres_url"),
    "pgqueuer": ("DATABASE_URL", "postgres_url"),
    "Docket": ("REDIS_URL", "redis_url"),
    "dramatiq over RabbitMQ": ("RABBITMQ_URL", "rabbit_url"),
}


def recipes() -> dict[str, tuple[str, str]]:
    """Return each section's program, with the handler before it, and what it prints."""
    titles = {
        number: match[1]
        for number, line in enumerate(WITH_SERVERS.read_text(encoding="utf-8").splitlines(), 1)
        if (match := HEADING.match(line))
    }
    blocks = [block for block in blocks_of(WITH_SERVERS) if block.language in {"python", "text"}]
    handler, rest = blocks[0], blocks[1:]
    programs, printed = rest[::2], rest[1::2]

    def section(block: Block) -> str:
        return titles[max(line for line in titles if line < block.line)]

    return {
        section(program): (handler.source + program.source, said.source)
        for program, said in zip(programs, printed, strict=True)
    }


def test_every_recipe_is_run():
    """One that nobody runs is soon wrong."""
    assert recipes().keys() == NEEDS.keys()


@pytest.mark.parametrize("title", NEEDS)
def test_a_recipe_acknowledges_each_message_by_its_own_outcome(title, request, tmp_path):
    """Nine in ten are written and one is not, whatever the engine calls that."""
    variable, fixture = NEEDS[title]
    source, expected = recipes()[title]
    program = tmp_path / "recipe.py"
    program.write_text(source, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False, timeout=240,
        env=ENVIRONMENT | {variable: request.getfixturevalue(fixture)} | {"TMPDIR": os.fspath(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
