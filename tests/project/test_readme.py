"""The Python blocks of the README and of docs/ run, and print what the pages say they print.

The convention, which the pages follow:

* the ``python`` blocks of one page run in order, in one namespace, in an empty folder;
* a ``text`` block right after a ``python`` block is what it prints, to the letter (a ``console`` block is
  one run on one machine: figures that differ from run to run, so it is not compared);
* a ``diff`` block is a program twice: without its ``+`` lines and without its ``-`` lines. Both run, in a
  namespace of their own, and print the same;
* a page whose blocks import asyncio runs on asyncio and uvloop, every other one on trio too;
* a page whose blocks need servers runs in tests/engines/test_recipes.py, each block by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import types
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from pages_support import PAGES, ROOT, WITH_SERVERS, blocks_of, rows, sections, sides

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKENDS = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}


def runs() -> Iterator[object]:
    for page in PAGES:
        if page == WITH_SERVERS:
            continue
        blocks = blocks_of(page)
        code = "".join(block.source for block in blocks if block.language in {"python", "diff"})
        name = page.relative_to(ROOT).as_posix()
        for backend in BACKENDS if code else ():
            if backend != "trio" or "import asyncio" not in code:
                yield pytest.param(page, backend, id=f"{name}-{backend}")


def printed(source: str, page: Path, line: int, namespace: dict[str, object]) -> str:
    """Run a block as if it stood at its place in the page, so that tracebacks point there."""
    out = io.StringIO()
    code = compile("\n" * line + source, str(page), "exec", dont_inherit=True)
    with contextlib.redirect_stdout(out):
        exec(code, namespace)
    return out.getvalue()


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Give the globals of a module that exists, as dataclasses and FastAPI look theirs up."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    return vars(module)


@pytest.fixture
def run_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Let ``anyio.run`` and ``asyncio.run`` of the pages use a backend, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def choose(backend: str) -> None:
        settings = BACKENDS[backend]
        monkeypatch.setattr(anyio, "run", partial(anyio.run, **settings))
        if backend == "uvloop":
            uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed here")

            def run(main):  # uvloop.run calls asyncio.run
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    return runner.run(main)

            monkeypatch.setattr(asyncio, "run", run)

    return choose


@pytest.mark.parametrize(("page", "backend"), list(runs()))
def test_a_page_runs_and_prints_what_it_says(page, backend, namespace, run_on):
    """Documentation that never ran is wrong sooner or later."""
    run_on(backend)
    blocks = blocks_of(page)
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block.language == "python":
            output = printed(block.source, page, block.line, namespace)
            if following is not None and following.language == "text":
                assert output == following.source, f"{page}:{following.line}"
        elif block.language == "diff":
            before, after = sides(block.source)
            old = printed(before, page, block.line, {"__name__": "page"})
            new = printed(after, page, block.line, {"__name__": "page"})
            assert old == new != "", f"{page}:{block.line}"


def test_the_first_screen_shows_a_short_program_and_its_output():
    """Who opens the README sees within one screen what it does, in 10 to 15 lines of code."""
    code, output = [b for b in blocks_of(ROOT / "README.md") if b.language in {"python", "text"}][
        :2
    ]
    assert (code.language, output.language) == ("python", "text")
    assert 10 <= len([line for line in code.source.splitlines() if line.strip()]) <= 15
    assert output.line + output.source.count("\n") < 50


def test_the_readme_is_short():
    """Who opens it reads it; what is looked up stands in docs/."""
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") < 150


def test_every_wish_leads_to_a_page():
    """The table is how a reader finds the page for what he wants."""
    wishes = rows(sections(ROOT / "README.md")["I want to ..."])[1:]
    assert len(wishes) > 20
    for wish, pages in wishes:
        assert "](" in pages, wish


def test_a_wrong_output_block_is_noticed(tmp_path, namespace, run_on):
    """The comparison above can fail: a page that lies does."""
    run_on("asyncio")
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:5"):
        test_a_page_runs_and_prints_what_it_says(page, "asyncio", namespace, run_on)
