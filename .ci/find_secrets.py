"""Look for secrets in files: keys, tokens, passwords. Exit with 1 if there is something that looks like one.

    python .ci/find_secrets.py FOLDER

It prints the file, the line and the kind, never what it found. An example reads its password from the
environment; a line that must hold something alike ends with "not a secret" in a comment.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LEFT_OUT = {".git", ".venv", "__pycache__", "build", "dist", "htmlcov", "mutants"}
LARGEST = 2_000_000  # bytes; what is larger was not typed by anybody
VALUE = r"""["'](?!\$|\{|<|%)[^"'\s]{6,}["']"""
KINDS = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{50,}"),
    "Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "API key": re.compile(r"\b(?:sk|pk|rk)[-_](?:live|test|proj|ant)[-_][A-Za-z0-9_-]{16,}"),
    "PyPI token": re.compile(r"\bpypi-[A-Za-z0-9_-]{50,}"),
    "web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    "password in an address": re.compile(r"\b[a-z][a-z0-9+]*://[^\s/:@\"'{}<>]+:[^\s/@\"'{}<>]+@"),
    "password in the code": re.compile(
        rf"(?i)\b\w*(?:password|passwd|secret|api_?key|access_?token|auth_?token)\w*[\"']?\s*[:=]\s*{VALUE}"
    ),
}


def files_of(folder: Path) -> Iterator[Path]:
    """Yield what people wrote; hidden folders are caches, but for CI's own."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") and part != ".ci" for part in parts[:-1])
        if path.is_file() and not hidden and not LEFT_OUT.intersection(parts):
            yield path


def found_in(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the kind of each thing that looks like a secret."""
    if path.stat().st_size > LARGEST:
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.rstrip().endswith("not a secret"):
            yield from ((number, kind) for kind, pattern in KINDS.items() if pattern.search(line))


def main(folder: Path) -> int:
    """Print what was found, and return the exit status."""
    paths = list(files_of(folder))
    found = [(path, *place) for path in paths for place in found_in(path)]
    for path, number, kind in found:
        print(f"{path.relative_to(folder)}:{number}: {kind}")
    print(f"{len(paths)} files looked through, {len(found)} secrets")
    return 1 if found or not paths else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
