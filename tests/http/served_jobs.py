"""An API over a queue with a worker, as a real server loads it: ``QUEUE_FILE`` names the file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from http_support import User, authorize

from microbatch.durable import DurableBatcher
from microbatch.http import BatchAPI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def save(users: list[User]) -> list[User]:
    return users


async def export() -> AsyncIterator[User]:
    for name in ("ann", "bob"):
        yield User(name=name)


queue = DurableBatcher(os.environ["QUEUE_FILE"], save, item_type=User, result_type=User)
app = BatchAPI(authorize=authorize)
app.collection("users", item_type=User, queue=queue, export=export)
