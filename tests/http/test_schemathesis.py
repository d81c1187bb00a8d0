"""schemathesis drives a served API by its own document: no 500, and every answer as it is declared there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from served_support import served

pytestmark = pytest.mark.slow

CHECKS = ["not_a_server_error", "status_code_conformance", "content_type_conformance",
          "response_schema_conformance", "response_headers_conformance"]  # fmt: skip


def drive(url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("schemathesis")
    return subprocess.run(
        [program, "run", f"{url}/openapi.json", "-H", "Authorization: Bearer ann", "--phases", "coverage",
         "--checks", ",".join(CHECKS), "--mode", "all", "--workers", "1", "--seed", "7",
         "--request-timeout", "100"],
        capture_output=True, text=True, timeout=240, cwd=folder, check=False,
    )  # fmt: skip


def test_every_answer_is_as_declared(tmp_path: Path) -> None:
    """Whatever a client makes up that the document allows, and much that it does not."""
    with served("uvicorn") as (url, process):
        found = drive(url, tmp_path)
        assert process.poll() is None
    assert found.returncode == 0, found.stdout[-20_000:]


def test_every_answer_about_jobs_is_as_declared(tmp_path: Path) -> None:
    """Of a job that there is, until the run deletes it, of others, of imports and of an export."""
    with served("uvicorn", "served_jobs:app", QUEUE_FILE=str(tmp_path / "queue.db")) as (
        url,
        process,
    ):
        made = httpx.post(
            f"{url}/users/batch",
            json={"items": [{"name": "ann"}] * 150},
            headers={"authorization": "Bearer ann"},
            timeout=60,
        )
        assert made.status_code == 202
        settings = f'[parameters]\n"path.id" = "{made.json()["jobId"]}"\n'
        (tmp_path / "schemathesis.toml").write_text(settings)
        found = drive(url, tmp_path)
        assert process.poll() is None
    assert found.returncode == 0, found.stdout[-20_000:]
    assert "/users/import" in found.stdout
