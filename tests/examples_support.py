"""How tests run an example: as a user does, by itself, in an empty folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support import ENVIRONMENT

EXAMPLES = Path(__file__).parents[1] / "examples"

#: Starts a program from a small one. A process's peak of memory begins with what the one had that started it,
#: and a test run may have had hundreds of megabytes.
SMALL = [
    sys.executable,
    "-c",
    "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))",
]


def output_of(name: str, *arguments: str, folder: Path, measured: bool = False) -> str:
    """Run an example with warnings as errors; its output is a pipe, so no progress bar may show.

    Where its own peak of memory is measured it has a small parent.
    """
    starter = SMALL if measured else []
    done = subprocess.run(
        [*starter, sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        cwd=folder,
        env=ENVIRONMENT | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout
