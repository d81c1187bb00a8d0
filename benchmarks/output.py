"""What a run says: printed, kept as Markdown beside its JSON, and put into the page if asked."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
README = HERE / "README.md"
#: Where a benchmark's tables stand, if not there.
PLACES = {
    "engines": ROOT / "docs" / "explanation" / "beyond-one-machine.md",
    "http": ROOT / "docs" / "explanation" / "http-costs.md",
}
PACKAGES = ["anyio", "trio", "uvloop", "aiodataloader", "strawberry-graphql", "dloader", "batchlet"]
PACKAGES += ["batched", "aiomisc", "async-batcher", "asyncpg", "opentelemetry-sdk", "cairnq"]


def about():
    """Say what the figures were measured with."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "compiler": platform.python_compiler(),
        "load": os.getloadavg()[0],
        "packages": packages,
    }


def _commit():
    """Name the last change of the code that is measured; without a git repository, its version."""

    def git(*arguments):
        command = ["git", "-C", ROOT, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    here = (ROOT / ".git").exists() and shutil.which("git") is not None
    commit = git("log", "-1", "--format=%h", "--", "src") if here else ""
    if not commit:
        return f"microbatch {importlib.metadata.version('microbatch')}"
    return f"commit {commit}{' and changes' if git('status', '--porcelain', '--', 'src') else ''}"


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def shown(figure, digits=2):
    """Write a median with its quartiles."""
    return f"{figure['median']:.{digits}f} ({figure['low']:.{digits}f}-{figure['high']:.{digits}f})"


def place_of(name):
    """Return the page that has a benchmark's tables."""
    return PLACES.get(name, README)


def section_of(page, name):
    """Return what stands between the marks of a benchmark, or None without them."""
    _, begin, rest = page.partition(f"<!-- {name} -->\n")
    section, end, _ = rest.partition(f"<!-- end of {name} -->")
    return section if begin and end else None


def pasted(page, name, section):
    """Return the page with another section between the marks of a benchmark."""
    before, begin, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    return f"{before}{begin}{section}{end}{after}"


class Page:
    """The lines and tables of one run."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.lines = []
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, suffix):
        return self.folder / f"{self.name}.{suffix}"

    def say(self, text=""):
        """Print what belongs to the result, and keep it."""
        print(text, flush=True)
        self.lines.append(text)

    def table(self, header, rows):
        """Say a table in Markdown, with an empty line behind it."""
        rows = [[str(cell) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        for row in [header, ["-" * width for width in widths], *rows]:
            self.say("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")
        self.say()

    def save(self, data):
        """Write the JSON, and what was said so far; a long run does so again and again."""
        facts = about()
        self.path("json").write_text(json.dumps({"about": facts, **data}, indent=1) + "\n")
        with_what = (
            f"{facts['date']}, {facts['commit']}, {facts['processor']}, {facts['cores']} cores, "
            f"{facts['system']}, CPython {facts['python']}, load {facts['load']:.1f} at the end."
        )
        if self.name in PLACES:  # the pages of docs/ have narrow lines
            with_what = textwrap.fill(with_what, 112)
        self.path("md").write_text("\n".join([with_what, "", *self.lines]).rstrip() + "\n")

    def paste(self):
        """Put the run's tables into their page, and its picture beside README.md."""
        page = place_of(self.name)
        text = page.read_text(encoding="utf-8")
        section = self.path("md").read_text(encoding="utf-8")
        page.write_text(pasted(text, self.name, section), encoding="utf-8")
        if self.path("svg").exists():
            shutil.copy(self.path("svg"), HERE)
