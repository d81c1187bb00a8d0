"""examples/microbatch.ipynb is executed, as a reader runs it: from the first cell to the last."""

from __future__ import annotations

import json

import pytest
from examples_support import EXAMPLES

pytestmark = [pytest.mark.pages, pytest.mark.timeout(200)]
PATH = EXAMPLES / "microbatch.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> list[list[dict]]:
    """What each cell of code gave."""
    import nbclient
    import nbformat
    from traitlets.config import Config

    notebook = nbformat.read(PATH, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    # Five ports that were free when they were looked for may be other tests' when the kernel comes to them.
    sockets = Config({"KernelManager": {"transport": "ipc", "ip": str(folder / "kernel")}})
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", config=sockets,
        resources={"metadata": {"path": str(folder)}},
    ).execute()  # fmt: skip
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def shown(outputs, kind: str) -> list[str]:
    """Return all that cells showed of a kind."""
    return [one["data"][kind] for cell in outputs for one in cell if kind in one.get("data", {})]


def test_the_notebook_runs_to_its_end_and_says_nothing_on_stderr(outputs):
    """nbclient raises if a cell does; a warning would stand in what a cell wrote."""
    assert len(outputs) > 8
    said = [one["text"] for cell in outputs for one in cell if one["output_type"] == "stream" and one["name"] == "stderr"]  # fmt: skip
    bars = ("items/s", "loads")
    assert [text for text in said if text.strip() and not any(bar in text for bar in bars)] == []


def test_await_at_the_top_level_gives_results(outputs):
    """12 squared, and the squares of ten."""
    assert shown(outputs, "text/plain")[:2] == ["144", str([n * n for n in range(10)])]


def test_the_report_and_the_figures_are_tables(outputs):
    """What Jupyter takes in the place of a repr."""
    report, figures = [text for text in shown(outputs, "text/html") if "<caption>" in text]
    assert "990 of 1,000 items succeeded" in report
    assert "13 is unlucky" in report
    assert "<td>1,011</td>" in figures


def test_every_outcome_of_the_stream_came_and_the_bar_was_full(outputs):
    """One in a hundred is unlucky."""
    assert "19800" in shown(outputs, "text/plain")


def test_the_plot_is_a_picture(outputs):
    """Latency against load."""
    [picture] = shown(outputs, "image/png")
    assert len(picture) > 5_000


def test_the_notebook_is_kept_without_outputs():
    """They differ from run to run, and would be stale with the next change."""
    for cell in json.loads(PATH.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs"), cell["id"]
        assert cell.get("execution_count") is None
