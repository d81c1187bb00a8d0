"""``in_process``: handlers of the main program, and the worker's side of a conversation."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import layers_handlers as work
import psutil
import pytest

from microbatch import layers
from microbatch.layers._workers import _serve

pytestmark = [pytest.mark.real_time, pytest.mark.timeout(180)]


# --- the main program -------------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys
import anyio
from microbatch.layers import in_process

class Item:
    def __init__(self, number):
        self.number = number

def double(items):
    return [Item(item.number * 2) for item in items]

async def main():
    handler = in_process(double, workers=1)
    results = await handler([Item(1), Item(2)])
    print([result.number for result in results], type(results[0]) is Item, flush=True)
    {ending}

{guard}anyio.run(main)
"""


def program(tmp_path: Path, ending: str = "", guard: str = "if __name__ == '__main__': ") -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(ending=ending, guard=guard))
    return path


def start(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    source = str(Path(layers.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": source}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=cwd,
        check=False,
    )


def test_handler_and_items_may_be_of_the_main_program(tmp_path: Path) -> None:
    """Run as a file or as a module; the classes that come back are its own."""
    path = program(tmp_path)
    for done in (start(str(path)), start("-m", "program", cwd=tmp_path)):
        assert (done.stdout, done.stderr) == ("[2, 4] True\n", "")


def test_an_unguarded_main_program_is_told_what_to_do(tmp_path: Path) -> None:
    """Else every worker would start workers of its own."""
    done = start(str(program(tmp_path, guard="")))
    assert done.returncode == 1
    assert "guard what it runs by `if __name__ == '__main__':`" in done.stderr


def test_the_main_program_may_be_a_package_with_relative_imports(tmp_path: Path) -> None:
    """As a service is that runs by ``python -m service``."""
    package = tmp_path / "service"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "work.py").write_text("def double(items):\n    return [2 * n for n in items]\n")
    (package / "__main__.py").write_text(
        "import anyio\n"
        "from microbatch.layers import in_process\n"
        "from .work import double\n"
        "if __name__ == '__main__':\n"
        "    print(anyio.run(in_process(double), [1, 2]))\n"
    )
    done = start("-m", "service", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[2, 4]\n", "")


def test_a_main_program_without_a_file_says_that_it_cannot_be_imported() -> None:
    """As in an interactive session."""
    done = start("-c", PROGRAM.format(ending="", guard=""))
    assert done.returncode == 1
    assert "cannot import the handler 'double'" in done.stderr


def test_workers_end_with_a_program_that_is_killed(tmp_path: Path) -> None:
    """Their input ends, whatever became of the parent."""
    ending = "print(handler._pool._idle[0]._process.pid, flush=True); os.kill(os.getpid(), 9)"
    done = start(str(program(tmp_path, ending)))
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout.split()[-1])
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not psutil.pid_exists(pid)


# --- the worker's side, in this process -------------------------------------------------------------------------


@pytest.fixture
def ctrl_c_back() -> Any:
    """Serving ignores Ctrl-C, as a worker must."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def conversation(function: bytes, *batches: Any) -> list[Any]:
    """Serve these batches and return the answers, the one to the setup first."""
    ours, theirs = multiprocessing.Pipe()
    answers = []

    def ask() -> None:
        with ours:
            answers.append(pickle.loads(ours.recv_bytes()))
            for batch in batches:
                ours.send_bytes(pickle.dumps(batch))
                answers.append(pickle.loads(ours.recv_bytes()))

    asking = threading.Thread(target=ask)
    asking.start()
    _serve(theirs, function)
    theirs.close()
    asking.join()
    return answers


def test_a_worker_answers_until_its_pipe_ends(ctrl_c_back: None) -> None:
    """First that it is ready, then each batch: results, or what went wrong."""
    answers = conversation(pickle.dumps(work.errors), ["x"], ["raise"], ["stubborn"], ["lambda"])
    assert [succeeded for succeeded, _ in answers] == [True, True, False, False, False]
    assert answers[0][1] is None
    assert [type(answer) for _, answer in answers[2:]] == [KeyError, RuntimeError, TypeError]
    assert conversation(pickle.dumps(work.store), [1]) == [(True, None), (True, None)]
    assert conversation(pickle.dumps(work.mixed), [1, 2]) == [(True, None), (True, [1, 2])]


def test_a_worker_that_cannot_have_the_handler_says_why_and_ends(ctrl_c_back: None) -> None:
    """The parent makes it an error that names the handler."""
    [(succeeded, error)] = conversation(b"cno_such_module\nhandler\n.")
    assert (succeeded, type(error)) == (False, ModuleNotFoundError)
