"""taskiq over NATS JetStream and RabbitMQ: two workers, and what becomes of the tasks of one that dies, stops or hangs."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from crowd_support import Crowd, crowd
from taskiq_support import left, send

from benchmarks.servers import wait_until

pytestmark = pytest.mark.engines

MANY, SOME = 2_000, 600
WORKER = Path(__file__).with_name("taskiq_worker.py")


@pytest.fixture(params=["nats", "rabbit"])
def job(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A stream or queue of its own for each test."""
    url = request.getfixturevalue(f"{request.param}_url")
    return {
        "engine": request.param,
        "url": url,
        "name": "t" + uuid.uuid4().hex[:12],
        "redelivery": 8.0,
    }


def finished(workers: Crowd, job: dict[str, Any], *living: Any) -> None:
    """End the workers when all is acknowledged, as far as that can be seen while they live."""
    if job["engine"] == "nats":
        wait_until(lambda: left(**job) == 0, workers.said)
    for process in living:
        workers.end(process)
    assert left(**job) == 0


def test_two_workers_handle_each_task_once_in_few_calls_and_bad_ones_again(job, tmp_path):
    """What a batcher in the worker is for; a retry is a middleware's, and it is the bad tasks' alone."""
    send(**job, count=MANY)
    with crowd(tmp_path, WORKER, **job, max_wait=0.1, every_bad=100) as workers:
        first, second = workers.start(), workers.start()
        bad = set(range(100, MANY + 1, 100))
        workers.wait_for(MANY)
        wait_until(lambda: all(workers.handled()[item] >= 3 for item in bad), workers.said)
        finished(workers, job, first, second)
        handled = workers.handled()
        assert {item for item, times in handled.items() if times == 3} == bad
        assert {times for item, times in handled.items() if item not in bad} == {1}
        assert len(workers.calls()) < MANY / 5


def test_what_a_killed_worker_held_is_handled_by_the_other(job, tmp_path):
    """A task is acknowledged when its function has ended, and that waits for its item."""
    send(**job, count=SOME)
    with crowd(tmp_path, WORKER, **job) as workers:
        first, second = workers.start(), workers.start()
        workers.wait_for(SOME * 3 // 10)
        workers.kill(first)
        workers.wait_for(SOME)
        finished(workers, job, second)
        assert len(workers.handled()) == SOME
        assert workers.handled().total() - SOME <= 2 * 20 * 2


def test_a_worker_that_is_told_to_stop_loses_nothing_and_repeats_nothing(job, tmp_path):
    """It waits for its running tasks while its connection stands."""
    send(**job, count=SOME)
    with crowd(tmp_path, WORKER, **job) as workers:
        first, second = workers.start(), workers.start()
        workers.wait_for(SOME * 3 // 10)
        workers.end(first)
        workers.wait_for(SOME)
        finished(workers, job, second)
        assert workers.handled() == dict.fromkeys(range(1, SOME + 1), 1)


def test_tasks_that_wait_for_company_are_handled_and_acknowledged_as_the_worker_stops(
    job, tmp_path
):
    """The batcher drains before the broker closes its connection, although nothing else would end their waiting."""
    job["redelivery"] = 300.0  # nothing is to come again
    send(**job, count=30)
    with crowd(tmp_path, WORKER, **job, batch=25, max_wait=3600.0, wait_tasks=0.1) as workers:
        worker = workers.start()
        workers.wait_for(25)
        wait_until(lambda: len(workers.taken()) == 30, workers.said)  # the others came too
        workers.end(worker)
        assert left(**job) == 0
        assert workers.handled() == dict.fromkeys(range(1, 31), 1)


def test_a_worker_whose_backend_hangs_stops_in_time_and_loses_nothing(job, tmp_path):
    """What it had is not acknowledged, so the next worker handles it."""
    send(**job, count=60)
    with crowd(tmp_path, WORKER, **job) as workers:
        hanging = workers.start(hangs=True, wait_tasks=0.5, shutdown=1.0)
        workers.wait_for_hung(1)
        workers.end(hanging)
        assert workers.calls() == []
        second = workers.start()
        workers.wait_for(60)
        finished(workers, job, second)
        assert workers.handled() == dict.fromkeys(range(1, 61), 1)
