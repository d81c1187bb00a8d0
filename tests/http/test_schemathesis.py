"""schemathesis drives a served API by its own document: no 500, and every answer as it is declared there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from served_support import served

pytestmark = pytest.mark.slow

CHECKS = ["not_a_server_error", "status_code_conformance", "content_type_conformance",
          "response_schema_conformance", "response_headers_conformance"]  # fmt: skip


def test_every_answer_is_as_declared(tmp_path: Path) -> None:
    """Whatever a client makes up that the document allows, and much that it does not."""
    program = Path(sys.executable).with_name("schemathesis")
    with served("uvicorn") as (url, process):
        found = subprocess.run(
            [program, "run", f"{url}/openapi.json", "-H", "Authorization: Bearer ann", "--phases", "coverage",
             "--checks", ",".join(CHECKS), "--mode", "all", "--workers", "1", "--seed", "7"],
            capture_output=True, text=True, timeout=240, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert process.poll() is None
    assert found.returncode == 0, found.stdout[-20_000:]
