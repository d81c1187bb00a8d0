"""Paste the tables of the last run into README.md, where a comment names their file.

python benchmarks/report.py
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
README = HERE / "README.md"
PASTED = re.compile(r"(<!-- (results/[\w/.]+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(text):
    """Return the README with every table as its file has it."""

    def paste(found):
        table = (HERE / found[2]).read_text().strip()
        return f"{found[1]}\n{table}\n\n{found[3]}"

    return PASTED.sub(paste, text)


def main():
    README.write_text(render(README.read_text()))


if __name__ == "__main__":
    main()
