"""docs/reference/http-jobs.md against the code: routes, the job's fields, problems, settings of Webhooks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pages_support import REFERENCE, documented, parameters, rows, sections

from microbatch import http
from microbatch.http import Webhooks
from microbatch.http._job_routes import job_routes
from microbatch.http._job_schemas import of_jobs

PAGE = REFERENCE / "http-jobs.md"
FILES = sorted(Path(http.__file__).parent.glob("_job_*.py"))
OTHERS = ["_query.py", "_transfers.py", "_exporting.py", "_cursors.py"]


def test_the_page_has_every_route_of_jobs() -> None:
    """One that is not there is one that nobody finds."""
    jobs: Any = None  # nothing is asked of it here
    found = [f"`{route.method} {route.path}`" for route in job_routes(jobs)]
    table = [cells[0] for cells in rows(sections(PAGE)["Routes"])[1:]]
    assert sorted(table) == sorted([*found, "`POST /users/import`", "`GET /users/export`"])


def test_the_page_has_every_field_of_a_job() -> None:
    """In the order in which they come."""
    schema = of_jobs("get")["responses"]["200"]["content"]["application/json"]["schema"]
    assert list(documented(PAGE, "The job")) == list(schema["properties"])


def test_the_page_has_every_problem() -> None:
    """By its type and its status: what clients act on."""
    folder = FILES[0].parent
    texts = [
        path.read_text(encoding="utf-8") for path in [*FILES, *(folder / name for name in OTHERS)]
    ]
    raised = set()
    for text in texts:
        for match in re.finditer(
            r"Problem\(\s*(\d{3})(?:(?!Problem\().)*?type=\"([a-z-]+)\"", text, re.DOTALL
        ):
            raised.add((match[2], match[1]))
    table = rows(sections(PAGE)["Problems"])[1:]
    assert {(cells[0].strip("`"), cells[1]) for cells in table} == raised


def test_the_page_has_the_settings_of_webhooks() -> None:
    """With their defaults."""
    table, code = documented(PAGE, "Webhooks"), parameters(Webhooks)
    assert list(table) == list(code)
    assert table["queue_path"] == table["secret_of"] == "required"
    assert table["allow"] == table["ssl_context"] == "`None`"
    numbers = tuple(map(float, re.findall(r"\d+", table["delays"])))
    assert numbers == code["delays"].default
