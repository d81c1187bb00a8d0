"""CI's look for secrets finds what was planted, and nothing in what is published."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from pages_support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = ROOT / ".ci" / "find_secrets.py"
# Each is put together here, so that this file holds none.
PLANTED = {
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "AWS access key": "key: AKIA" + "IOSFODNN7EXAMPLE",
    "GitHub token": "gh" + "p_" + "a1B2" * 9,
    "Slack token": "xox" + "b-1234567890-abcdef",
    "API key": "sk" + "-live-" + "0123456789abcdef",
    "PyPI token": "pypi" + "-" + "A" * 60,
    "web token": "ey" + "JhbGciOiJIUzI1NiJ9" + ".ey" + "JzdWIiOiIxMjM0NTY3ODkwIn0" + ".dozjgNryP4J3jVmN",
    "password in an address": "postgresql://app:" + "hunter2!" + "@db.example/orders",
    "password in the code": "DB_PASSWORD = " + '"correct-horse"',
}  # fmt: skip


def look(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_secret_is_found_and_not_printed(kind: str, tmp_path: Path) -> None:
    """A log of CI is read by more people than the repository."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "shop.py").write_text(f"import os\n{PLANTED[kind]}\n")
    done = look(tmp_path)
    assert done.returncode == 1
    assert f"examples/shop.py:2: {kind}\n" in done.stdout
    assert PLANTED[kind] not in done.stdout + done.stderr


def test_what_an_example_reads_from_the_environment_is_no_secret(tmp_path: Path) -> None:
    """That is how it should be done; placeholders of a page are none either."""
    (tmp_path / "page.md").write_text(
        'password = os.environ["DB_PASSWORD"]\nDSN=postgresql://user@host/database\npassword="$PASSWORD"\n'
    )
    done = look(tmp_path)
    assert (done.returncode, done.stdout) == (0, "1 files looked through, 0 secrets\n")


def test_a_folder_without_files_is_no_success(tmp_path: Path) -> None:
    """A wrong path would pass for ever."""
    assert look(tmp_path).returncode == 1


def test_nothing_that_is_published_holds_a_secret() -> None:
    """Examples and tests are copied."""
    done = look(ROOT)
    assert done.returncode == 0, done.stdout
