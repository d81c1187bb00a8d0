"""``in_process``: worker processes that die, are replaced, and never outlive their handler."""

from __future__ import annotations

import functools
import gc
import os
import pickle
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import anyio
import layers_handlers as work
import psutil
import pytest
from support import run

from microbatch import Batcher, HandlerCrashed, HandlerTimeout, ResultCountError
from microbatch.layers import WorkerDied, in_process
from microbatch.layers._in_process import _Job
from microbatch.layers._workers import Died, Pool

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.real_time, pytest.mark.timeout(180)]


#: Processes that were there before the test.
before: set[psutil.Process] = set()


def children() -> list[psutil.Process]:
    """Return the worker processes; not the one in which ``multiprocessing`` tracks its resources."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child not in before and not any("resource_tracker" in word for word in command(child))
    ]


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(autouse=True)
def nothing_left_running() -> Any:
    """No test may leave a process behind."""
    before.clear()
    before.update(children())
    yield
    gc.collect()
    deadline = time.monotonic() + 60
    while children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children() == []


async def test_results_come_back_in_the_items_order() -> None:
    """From another process, which stays for the next batch."""
    async with in_process(work.square) as handler:
        assert await handler([3, 1, 2]) == [9, 1, 4]
    async with in_process(work.process_ids, workers=1) as handler:
        first, second = await handler([0]), await handler([0])
        assert first == second != [os.getpid()]


async def test_batches_side_by_side_keep_to_the_number_of_workers() -> None:
    """Six batches of 50 ms on two workers: two process ids."""
    async with in_process(work.slowly, workers=2) as handler:
        found: list[Any] = []

        async def call() -> None:
            found.extend(await handler([0.05]))

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(call)
        assert len(found) == 6
        assert 1 <= len(set(found)) <= 2
        assert len(children()) <= 2


async def test_a_batcher_runs_it_and_nothing_is_left_after_close() -> None:
    """The batch is one worker's; every caller gets its own result."""
    async with in_process(work.square, workers=2) as handler:
        async with Batcher(handler, max_batch_size=10, max_concurrency=2) as batcher:
            assert await batcher.submit_many(range(40)) == [n * n for n in range(40)]
        assert batcher.stats().batches == 4
        assert len(children()) in {1, 2}
    assert children() == []
    with pytest.raises(RuntimeError, match="the workers of 'square' are closed"):
        await handler([1])
    await handler.aclose()


@pytest.mark.parametrize(("how", "kind"), [("die", "SIGKILL"), ("exit", "exit code 3")])
async def test_a_dead_worker_fails_its_batch_and_is_replaced(how: str, kind: str) -> None:
    """The batcher goes on; the error says what the process died of."""
    async with (
        in_process(work.kill_itself, workers=1) as handler,
        Batcher(handler, max_batch_size=2) as batcher,
    ):
        alive = await batcher.submit("live")
        report = await batcher.submit_many_report([how, "mate", "live", "live"])
        assert [outcome.ok for outcome in report] == [False, False, True, True]
        error = report[1].error
        assert isinstance(error, WorkerDied)
        assert isinstance(error, HandlerCrashed)
        assert (error.kind, report[0].code) == (kind, "worker_died")
        assert str(error) == (
            f"the worker process of 'kill_itself' died of {kind} while it had these items"
        )
        assert report[2].value not in {alive, os.getpid()}


async def test_a_worker_killed_from_outside_fails_only_its_own_batch(tmp_path: Path) -> None:
    """As the kernel does when memory runs out."""
    async with in_process(work.sleep_and_tell, workers=2) as handler:
        ended: list[BaseException] = []

        async def call(path: str) -> None:
            try:
                await handler([path])
            except WorkerDied as error:
                ended.append(error)

        async with anyio.create_task_group() as tasks:
            for name in "ab":
                tasks.start_soon(call, str(tmp_path / name))
            ids = [await written(tmp_path / name) for name in "ab"]
            os.kill(ids[0], signal.SIGKILL)
            await until(lambda: ended)
            assert psutil.pid_exists(ids[1])
            await handler.aclose()
        assert len(ended) == 2


async def until(condition: Any) -> None:
    """Wait for what another process does: it sets no event here."""
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(0.01)


async def written(path: Path) -> int:
    """Wait until a process id stands in a file."""
    await until(lambda: path.exists() and path.read_text())
    return int(path.read_text())  # noqa: ASYNC240


async def test_an_idle_worker_that_died_is_replaced_without_harm() -> None:
    """Its death between two batches is nobody's failure."""
    async with in_process(work.process_ids, workers=1) as handler:
        [first] = await handler([0])
        os.kill(first, signal.SIGKILL)
        psutil.wait_procs(children(), timeout=60)
        [second] = await handler([0])
        assert second != first


async def test_a_cancelled_batch_has_its_worker_killed(tmp_path: Path) -> None:
    """A thread could not be stopped; a process can."""
    async with in_process(work.sleep_and_tell, workers=1) as handler:
        path = tmp_path / "pid"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(handler, [str(path)])
            pid = await written(path)
            tasks.cancel_scope.cancel()
        await until(lambda: not psutil.pid_exists(pid))


async def test_a_cancelled_batch_has_its_worker_killed_that_is_still_starting(
    tmp_path: Path,
) -> None:
    """An import that hangs would keep the process and the thread that waits for it, and the program at its end."""
    path = tmp_path / "pid"
    handler = in_process(work.HangsOnImport(str(path)), workers=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler, [1])
        pid = await written(path)
        tasks.cancel_scope.cancel()
    with anyio.fail_after(60):
        await until(lambda: not psutil.pid_exists(pid))


async def test_a_handler_timeout_stops_what_burns_the_cpu(tmp_path: Path) -> None:
    """The callers fail on time and the slot is free for the next batch."""
    async with (
        in_process(work.sleep_and_tell, workers=1) as handler,
        Batcher(handler, handler_timeout=0.5) as batcher,
    ):
        with pytest.raises(HandlerTimeout):
            await batcher.submit(str(tmp_path / "pid"))


async def test_a_job_cancelled_while_it_waits_for_a_worker_never_starts(tmp_path: Path) -> None:
    """Nor does it cost the one at work."""
    async with in_process(work.slowly, workers=1) as handler:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(handler, [0.2])
            await anyio.sleep(0.05)
            with anyio.move_on_after(0.01):
                await handler([30])
        assert await handler([0])


def test_a_job_abandoned_at_any_moment_costs_its_worker_and_no_more() -> None:
    """Before it is given to the worker, and after the answer came."""

    class Process:
        killed = 0

        def kill(self) -> None:
            self.killed += 1

    process: Any = Process()
    job = _Job([1])
    job.abandon()
    job.start(process)
    assert process.killed == 1
    with pytest.raises(EOFError):
        job.end()
    job = _Job([1])
    job.start(process)
    job.end()
    job.abandon()
    assert process.killed == 1


async def test_an_item_that_cannot_be_pickled_fails_alone_and_at_once() -> None:
    """The others go on without it."""
    async with in_process(work.mixed) as handler:
        results = await handler([1, lambda: 2, 3])
        assert [results[0], results[2]] == [1, 3]
        assert isinstance(results[1], TypeError)
        assert str(results[1]).startswith("item 1 cannot be sent to a worker process: ")
        assert results[1].__cause__ is not None
        [error] = await handler([lambda: 2])
        assert isinstance(error, TypeError)


async def test_an_item_that_cannot_be_loaded_fails_its_batch() -> None:
    """The worker says so and lives on."""
    async with in_process(work.mixed) as handler:
        with pytest.raises(ValueError, match="invalid literal"):
            await handler([work.Unloadable()])
        assert await handler([1]) == [1]


def test_a_handler_that_no_other_process_can_have_is_refused_at_once() -> None:
    """Lambdas, nested functions, async functions and generators."""

    async def asynchronous(items: list[int]) -> list[int]:
        return items

    with pytest.raises(
        TypeError, match=r"in_process needs a function at the top level of a module, got .*<lambda>"
    ):
        in_process(lambda items: items)
    with pytest.raises(
        TypeError, match=r"in_process runs plain functions, got .*asynchronous, which is async"
    ):
        in_process(asynchronous)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        in_process(work.square, workers=0)
    with pytest.raises(TypeError, match=r"workers must be an int, got 1\.5"):
        in_process(work.square, workers=1.5)  # type: ignore[call-overload]


async def test_a_handler_that_the_worker_cannot_import_is_named() -> None:
    """It can be pickled here, since it can be found here; there it cannot."""
    import types

    module = types.ModuleType("made_up_here")
    exec("def handler(items):\n    return items\n", module.__dict__)
    sys.modules["made_up_here"] = module
    try:
        async with in_process(module.handler) as handler:
            with pytest.raises(
                TypeError,
                match="cannot import the handler 'handler': No module named 'made_up_here'",
            ):
                await handler([1])
    finally:
        del sys.modules["made_up_here"]


async def test_a_worker_that_dies_while_it_starts_is_told_with_what_may_be_wrong() -> None:
    """What the import of the handler's module does there is not under our control."""
    async with in_process(work.dies_on_import) as handler:
        with pytest.raises(WorkerDied, match="died of exit code 9 while it started") as caught:
            await handler([1])
        assert caught.value.starting


async def test_an_answer_that_cannot_be_loaded_here_costs_the_worker() -> None:
    """Who knows what else it would say; the error is raised as it is."""
    async with in_process(work.unloadable, workers=1) as handler:
        with pytest.raises(ValueError, match="invalid literal"):
            await handler([1])
        assert children() == []


async def test_closing_ends_a_worker_that_has_just_been_started_or_given_back(
    tmp_path: Path,
) -> None:
    """Whatever its thread was about to do with it."""
    pool = Pool(pickle.dumps(work.HangsOnImport(str(tmp_path / "pid"))), "hangs_on_import")
    pool.end()
    with pytest.raises(Died, match="SIGKILL"):
        pool.take()
    pool = Pool(pickle.dumps(work.square), "square")
    worker = pool.take()
    pool._ended = True
    pool.give_back(worker)
    assert children() == []


async def test_errors_travel_with_their_type_and_the_workers_traceback() -> None:
    """Raised for the batch, or returned for one item."""
    async with in_process(work.errors, workers=1) as handler:
        with pytest.raises(KeyError, match="whole") as caught:
            await handler(["raise"])
        [note] = caught.value.__notes__
        assert note.startswith("in a worker process: Traceback")
        assert "layers_handlers.py" in note
        results = await handler(["x", "own"])
        assert isinstance(results[0], ValueError)
        assert repr(results[1]) == (
            "RuntimeError('StubbornError in a worker process, which cannot be pickled: 3 and 4')"
        )
        with pytest.raises(RuntimeError, match=r"StubbornError in a worker process, .*: 1 and 2"):
            await handler(["stubborn"])
        with pytest.raises(TypeError, match="the handler's results cannot be sent from the worker"):
            await handler(["lambda"])
        with pytest.raises(ResultCountError):
            await handler(["short"])
        assert len(children()) == 1


async def test_a_handler_that_returns_nothing_gives_none_for_each() -> None:
    """As anywhere else; and no items make no call."""
    async with in_process(functools.partial(work.store)) as handler:
        assert await handler([]) == []
        assert children() == []
        assert await handler([1, 2]) == [None, None]
    assert handler.__qualname__ == "store"


async def test_what_the_handler_prints_does_not_meet_the_answers(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It goes where this program's own output goes, and standard input is empty."""
    async with in_process(work.noisy) as handler:
        assert await handler([1]) == [1]
    assert capfd.readouterr().out == "to standard output\nstraight to descriptor 1\n"


async def test_a_dropped_handler_ends_its_workers() -> None:
    """Nobody called aclose; the fixture sees that no process is left."""
    handler = in_process(work.square)
    assert await handler([2]) == [4]
    assert len(children()) == 1
    del handler
    gc.collect()
    psutil.wait_procs(children(), timeout=60)
    assert children() == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_one_handler_serves_one_event_loop_after_another(backend: str) -> None:
    """The workers are processes of the program, not of a loop."""
    handler = in_process(work.process_ids, workers=1)
    ids = {run(backend, handler, [0], real_time=True)[0] for _ in range(2)}
    assert len(ids) == 1
    run(backend, handler.aclose, real_time=True)


def test_a_forked_child_gets_workers_of_its_own() -> None:
    """And leaves its parent's alone, at its end too."""
    handler = in_process(work.process_ids, workers=1)
    [first] = run("asyncio", handler, [0], real_time=True)
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child, where nothing is measured
        status = 1
        try:
            [own] = run("asyncio", handler, [0], real_time=True)
            handler._pool.end()
            status = 0 if own != first else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert run("asyncio", handler, [0], real_time=True) == [first]
    inherited = handler._pool
    inherited._process_id = -1  # as in a child
    inherited.end()
    assert run("asyncio", handler, [0], real_time=True) != [first]
    handler._pool.end()
    assert psutil.pid_exists(first)
    handler._pool = inherited
    inherited._process_id = os.getpid()
    run("asyncio", handler.aclose, real_time=True)


async def test_a_worker_whose_end_somebody_else_has_noticed_died_of_an_unknown_cause() -> None:
    """A program that waits for all its children takes their exit codes."""
    pool = Pool(pickle.dumps(work.square), "square")
    worker = pool.take()
    worker.kill()
    psutil.wait_procs(children(), timeout=60)
    assert not worker.is_alive()
    assert pool.discard(worker, died=True) == "an unknown cause"
